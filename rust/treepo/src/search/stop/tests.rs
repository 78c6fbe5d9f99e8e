//! Tests of the module above.

use proptest::prelude::*;

use super::super::walk::fixture::{Model, Op, ops};
use super::*;

const ROOT: PathId = PathId(0);
const EOS: u32 = 1000;

fn config(strings: &[&str], boxed: Boxed) -> SearchConfig {
    let mut config = SearchConfig { eos_token_ids: vec![EOS], ..SearchConfig::default() };
    config.stop.strings = strings.iter().map(ToString::to_string).collect();
    config.stop.boxed = boxed;
    config
}

fn repetition(by: Repetition, len: u32, count: u32, window: u32) -> SearchConfig {
    let mut config = config(&[], Boxed::Ignored);
    config.stop.repetition = by;
    config.stop.repetition_len = len;
    config.stop.repetition_count = count;
    config.stop.repetition_window = window;
    config
}

/// Pushes tokens with these texts to the path; the index of the one that ends it, and why.
fn end_of<T: AsRef<[u8]>>(
    config: &SearchConfig,
    model: &mut Model,
    path: PathId,
    pieces: &[T],
    segment_ends: bool,
) -> Option<(usize, FinishReason)> {
    let mut rules = StopRules::new(config, Some(TokenTexts::new(pieces))).unwrap();
    for i in 0..pieces.len() {
        model.push(path, i as u32, -1.0, 1.0);
        let reason = rules.reason(config, model.tree(), path, false, segment_ends, 1);
        if let Some(reason) = reason {
            return Some((i, reason));
        }
    }
    None
}

/// The token that ends a completion with these texts as a stop; the prompt has no text.
fn stop_at<T: AsRef<[u8]>>(strings: &[&str], boxed: Boxed, pieces: &[T]) -> Option<usize> {
    let mut model = Model::new(0, &[999]);
    let end = end_of(&config(strings, boxed), &mut model, ROOT, pieces, false);
    end.map(|(i, reason)| {
        assert_eq!(reason, FinishReason::Stop);
        i
    })
}

fn box_at<T: AsRef<[u8]>>(pieces: &[T]) -> Option<usize> {
    stop_at(&[], Boxed::Stops, pieces)
}

#[test]
fn a_stop_string_ends_the_path_with_the_token_that_completes_it() {
    assert_eq!(stop_at(&["END"], Boxed::Ignored, &["xE", "N", "D", "y"]), Some(2));
    assert_eq!(stop_at(&["END"], Boxed::Ignored, &["a END", "y"]), Some(0));
    assert_eq!(stop_at(&["END"], Boxed::Ignored, &["E", "ND and more", "y"]), Some(1));
    assert_eq!(stop_at(&["END"], Boxed::Ignored, &["an END in", "y"]), Some(0));
    assert_eq!(stop_at(&["END"], Boxed::Ignored, &["E", "N", "d"]), None);
}

#[test]
fn the_first_of_several_strings_ends_the_path() {
    let strings = ["longer string", "b", "zz"];
    assert_eq!(stop_at(&strings, Boxed::Ignored, &["a", "longer strin", "b", "g"]), Some(2));
    assert_eq!(stop_at(&strings, Boxed::Ignored, &["longer ", "strin", "g"]), Some(2));
}

#[test]
fn empty_tokens_do_not_break_a_stop_string() {
    assert_eq!(stop_at(&["END"], Boxed::Ignored, &["E", "", "", "N", "", "D"]), Some(5));
    assert_eq!(stop_at(&["END"], Boxed::Ignored, &["E", "N", "", "x"]), None);
}

#[test]
fn a_character_may_be_split_over_tokens() {
    let (string, bytes) = ("\u{1f333}\u{e9}", "\u{1f333}\u{e9}".as_bytes());
    for cut in 1..bytes.len() {
        let pieces = [b"x", &bytes[..cut], &bytes[cut..]];
        assert_eq!(stop_at(&[string], Boxed::Ignored, &pieces), Some(2), "cut {cut}");
    }
    let single: Vec<[u8; 1]> = bytes.iter().map(|&byte| [byte]).collect();
    assert_eq!(stop_at(&[string], Boxed::Ignored, &single), Some(5));
}

#[test]
fn a_string_that_overlaps_itself_is_found() {
    assert_eq!(stop_at(&["aab"], Boxed::Ignored, &["a", "a", "a", "b"]), Some(3));
    assert_eq!(stop_at(&["abab"], Boxed::Ignored, &["ab", "a", "c", "aba", "b"]), Some(4));
}

#[test]
fn what_begins_in_the_prompt_ends_nothing() {
    let pieces = ["D", "EN", "D", "\\boxed{", "}"];
    let (stop, boxed) = (config(&["END"], Boxed::Ignored), config(&[], Boxed::Stops));
    let mut model = Model::new(0, &[1]); // "EN"
    let end = end_of(&stop, &mut model, ROOT, &pieces, false);
    assert_eq!(end, Some((2, FinishReason::Stop)));
    let mut model = Model::new(0, &[3]); // "\\boxed{"
    assert_eq!(end_of(&boxed, &mut model, ROOT, &["}", "x"], false), None);
    let mut model = Model::new(0, &[0]);
    let end = end_of(&boxed, &mut model, ROOT, &pieces, false);
    assert_eq!(end, Some((4, FinishReason::Stop)));
}

#[test]
fn a_stop_string_is_found_over_forks_and_segments() {
    let config = config(&["STOP HERE"], Boxed::Ignored);
    let pieces = ["STOP", " HE", "RE", "x"];
    let texts = TokenTexts::new(pieces);
    let mut model = Model::new(0, &[999]);
    model.push(ROOT, 0, -1.0, 1.0);
    model.mark(ROOT);
    model.push(ROOT, 3, -1.0, 1.0); // hides nothing: it is not on the fork's way
    let fork = model.fork(ROOT, 2);
    model.push(fork, 1, -1.0, 1.0);
    let fork = model.fork(fork, 3);
    model.push(fork, 2, -1.0, 1.0);
    let mut rules = StopRules::new(&config, Some(texts)).unwrap();
    let mut reason = |path| rules.reason(&config, model.tree(), path, false, false, 1);
    assert_eq!(reason(fork), Some(FinishReason::Stop));
    assert_eq!(reason(ROOT), None);
}

#[test]
fn a_complete_box_ends_the_path_with_its_closing_brace() {
    assert_eq!(box_at(&["so \\boxed{42", "}", "."]), Some(1));
    assert_eq!(box_at(&["\\boxed{42} and", "."]), Some(0));
    assert_eq!(box_at(&["\\boxed{42", " }$", "."]), Some(1));
    assert_eq!(box_at(&["\\boxed{}", "."]), Some(0));
    assert_eq!(box_at(&["\\boxed{42", "."]), None);
    assert_eq!(box_at(&["boxed{42}", "{\\boxed}", "\\boxed42}", "\\box{d}"]), None);
}

#[test]
fn braces_nest_to_any_depth() {
    assert_eq!(box_at(&["\\boxed{\\frac{1}", "{2}", "}", "}"]), Some(2));
    let (open, close) = ("{".repeat(500), "}".repeat(500));
    assert_eq!(box_at(&["\\boxed{", &open, &close, "}", "}"]), Some(3));
    assert_eq!(box_at(&["\\boxed{", &open, &close, "x"]), None);
    assert_eq!(box_at(&["}}} \\boxed{a", "}"]), Some(1));
    assert_eq!(box_at(&["{ \\boxed{a", "}"]), Some(1));
    assert_eq!(box_at(&["\\boxed{ \\boxed{a}", "}"]), Some(0), "the inner box is complete");
}

#[test]
fn escaped_braces_do_not_count() {
    assert_eq!(box_at(&["\\boxed{\\}", "\\{", "a\\", "}", "}"]), Some(4));
    assert_eq!(box_at(&["\\boxed{a\\\\", "}", "}"]), Some(1), "an escaped backslash");
    assert_eq!(box_at(&["\\boxed\\{a", "}", "}"]), None);
    assert_eq!(box_at(&["\\boxed\\\\{a", "}", "}"]), None, "a brace behind a line break");
    assert_eq!(box_at(&["\\\\boxed{a", "}", "}"]), None, "the command is escaped");
    assert_eq!(box_at(&["\\\\\\boxed{a", "}", "}"]), Some(1));
}

#[test]
fn white_space_may_stand_before_the_brace() {
    assert_eq!(box_at(&["\\boxed \n{a", "}"]), Some(1));
    assert_eq!(box_at(&["\\boxed.{a", "}"]), None);
}

#[test]
fn a_box_is_found_over_tokens_segments_and_forks() {
    // F5: the published code looks at the text of one segment only
    let config = config(&[], Boxed::Stops);
    let pieces = ["\\bo", "xed", "{", "4", "", "2", "}"];
    let mut rules = StopRules::new(&config, Some(TokenTexts::new(pieces))).unwrap();
    for (segment_len, forks) in [(1, false), (2, false), (3, true), (1, true)] {
        let mut model = Model::new(0, &[999]);
        let mut path = ROOT;
        for i in 0..pieces.len() as u32 {
            model.push(path, i, -1.0, 1.0);
            let reason = rules.reason(&config, model.tree(), path, false, true, 1);
            assert_eq!(reason.is_some(), i == 6, "piece {i}");
            if (i + 1) % segment_len == 0 {
                model.mark(path);
                path = if forks { model.fork(path, i + 2) } else { path };
            }
        }
    }
}

#[test]
fn an_end_of_sequence_alone_in_its_segment_ends_the_path() {
    // F4: the published code never tests a segment's first token
    let config = config(&[], Boxed::Ignored);
    let mut rules = StopRules::new(&config, None).unwrap();
    let mut model = Model::new(0, &[999]);
    model.push(ROOT, 3, -1.0, 1.0);
    model.mark(ROOT);
    assert_eq!(rules.reason(&config, model.tree(), ROOT, false, true, 1), None);
    let fork = model.fork(ROOT, 2);
    for path in [ROOT, fork] {
        model.push(path, EOS, -1.0, 1.0);
        let reason = rules.reason(&config, model.tree(), path, false, false, 2);
        assert_eq!(reason, Some(FinishReason::Stop));
    }
}

#[test]
fn an_end_of_sequence_in_the_prompt_or_among_given_tokens_ends_nothing() {
    let config = config(&[], Boxed::Ignored);
    let mut rules = StopRules::new(&config, None).unwrap();
    let mut model = Model::new(0, &[EOS]);
    assert_eq!(rules.reason(&config, model.tree(), ROOT, false, false, 1), None, "no token");
    model.give(ROOT, &[EOS]);
    model.push(ROOT, 3, -1.0, 1.0);
    assert_eq!(rules.reason(&config, model.tree(), ROOT, false, false, 1), None);
}

#[test]
fn reasons_have_an_order() {
    use FinishReason::{Depth, Length, Repetition as Repeats, Stop};
    let mut config = repetition(Repetition::Bytes, 1, 2, 100);
    config.stop.strings = vec!["s".into()];
    let texts = TokenTexts::new(["s", "a"]);
    let mut rules = StopRules::new(&config, Some(texts)).unwrap();
    let mut model = Model::new(0, &[999]);
    let mut paths = [0; 3].map(|_| model.fork(ROOT, 1));
    for (path, last) in paths.iter_mut().zip([EOS, 0, 1]) {
        for id in [1, 1, last] {
            model.push(*path, id, -1.0, 1.0);
        }
    }
    let depth = config.max_depth;
    let mut reason = |path, full, segment_ends, depth| {
        rules.reason(&config, model.tree(), path, full, segment_ends, depth)
    };
    assert_eq!(reason(paths[0], true, true, depth), Some(Stop));
    assert_eq!(reason(paths[1], true, true, depth), Some(Stop));
    assert_eq!(reason(paths[2], true, true, depth), Some(Length));
    assert_eq!(reason(paths[2], false, true, depth), Some(Depth));
    assert_eq!(reason(paths[2], false, true, depth - 1), Some(Repeats));
    assert_eq!(reason(paths[2], false, false, depth), None);
}

#[test]
fn thirty_nine_equal_characters_end_a_path_and_thirty_eight_do_not() {
    for (n, ends) in [(38, false), (39, true)] {
        for by in [Repetition::Tokens, Repetition::Bytes] {
            let config = repetition(by, 32, 8, 1024);
            let mut rules = StopRules::new(&config, Some(TokenTexts::new(["x"]))).unwrap();
            let mut model = Model::new(0, &[0, 0, 0]);
            (0..n).for_each(|_| model.push(ROOT, 0, -1.0, 1.0));
            let reason = rules.reason(&config, model.tree(), ROOT, false, true, 1);
            assert_eq!(reason, ends.then_some(FinishReason::Repetition), "{n} {by:?}");
        }
    }
}

#[test]
fn repetition_is_found_over_segments_and_forks() {
    // F5: no segment of four tokens holds a piece of four tokens twice
    let config = repetition(Repetition::Tokens, 4, 3, 1024);
    let mut rules = StopRules::new(&config, None).unwrap();
    let mut model = Model::new(0, &[999]);
    let (mut path, mut ended) = (ROOT, None);
    for segment in 0..6 {
        for id in [1, 2, 3, 4] {
            model.push(path, id, -1.0, 1.0);
        }
        if rules.reason(&config, model.tree(), path, false, true, 1).is_some() {
            ended = ended.or(Some(segment));
        }
        model.mark(path);
        path = model.fork(path, 1 + 4 * (segment + 1));
    }
    assert_eq!(ended, Some(2), "the third time");
}

#[test]
fn repetition_is_looked_for_within_its_window() {
    for (window, ends) in [(5, false), (6, true)] {
        let config = repetition(Repetition::Tokens, 1, 2, window);
        let mut rules = StopRules::new(&config, None).unwrap();
        let mut model = Model::new(0, &[999]);
        for id in [7, 1, 2, 3, 4, 7] {
            model.push(ROOT, id, -1.0, 1.0);
        }
        let reason = rules.reason(&config, model.tree(), ROOT, false, true, 1);
        assert_eq!(reason.is_some(), ends, "window {window}");
    }
}

#[test]
fn given_tokens_are_no_repetition() {
    let config = repetition(Repetition::Tokens, 1, 2, 100);
    let mut rules = StopRules::new(&config, None).unwrap();
    let mut model = Model::new(0, &[999]);
    model.push(ROOT, 1, -1.0, 1.0);
    model.give(ROOT, &[7, 7, 7]);
    model.push(ROOT, 2, -1.0, 1.0);
    assert_eq!(rules.reason(&config, model.tree(), ROOT, false, true, 1), None);
}

#[test]
fn rules_that_cannot_work_are_refused_by_name() {
    let refused =
        |config: &SearchConfig, texts: Option<TokenTexts>| match StopRules::new(config, texts) {
            Err(Error::InvalidConfig { field, .. }) => field,
            other => panic!("{other:?}"),
        };
    let texts = || Some(TokenTexts::new(["a"]));
    assert_eq!(refused(&config(&["a"], Boxed::Ignored), None), "stop.strings");
    assert_eq!(refused(&config(&[], Boxed::Stops), None), "stop.boxed");
    assert_eq!(refused(&repetition(Repetition::Bytes, 3, 2, 9), None), "stop.repetition");
    assert_eq!(refused(&config(&["a", ""], Boxed::Ignored), texts()), "stop.strings");
    let (by, len, count) = (Repetition::Tokens, "stop.repetition_len", "stop.repetition_count");
    assert_eq!(refused(&repetition(by, 0, 2, 9), None), len);
    assert_eq!(refused(&repetition(by, 3, 1, 9), None), count);
    assert!(StopRules::new(&repetition(by, 3, 2, 9), None).is_ok());
    assert!(StopRules::new(&repetition(Repetition::Ignored, 0, 0, 0), None).is_ok());
}

#[test]
fn buffers_grow_once() {
    let mut config = repetition(Repetition::Bytes, 5, 9, 16);
    config.stop.strings = vec!["xyz".into()];
    let mut rules = StopRules::new(&config, Some(TokenTexts::new(["xz", "y"]))).unwrap();
    let mut model = Model::new(0, &[999]);
    let mut capacities = Vec::new();
    for i in 0..200 {
        model.push(ROOT, u32::from(i % 3 == 1), -1.0, 1.0);
        rules.reason(&config, model.tree(), ROOT, false, true, 1);
        let sizes = [rules.tail.capacity(), rules.bytes.capacity(), rules.ranks.capacity()];
        capacities.push(sizes);
    }
    assert!(capacities[100..].iter().all(|sizes| sizes == &capacities[100]), "{capacities:?}");
}

const PIECES: [&str; 16] = [
    "",
    "a",
    "b",
    "ab",
    "ba}",
    "{",
    "}",
    "\\",
    "\\boxed{",
    "\\box",
    "ed",
    " ",
    "{}",
    "}}b",
    "\\boxed{a}",
    "d{",
];

/// Ends of all occurrences of the strings.
fn naive_strings(text: &[u8], strings: &[&str]) -> Vec<usize> {
    let ends = |end: &usize| strings.iter().any(|s| text[..*end].ends_with(s.as_bytes()));
    (1..=text.len()).filter(ends).collect()
}

/// Ends of all boxes, read forwards with a stack of open braces.
fn naive_boxes(text: &[u8]) -> Vec<usize> {
    let (mut open, mut ends, mut i) = (Vec::new(), Vec::new(), 0);
    while i < text.len() {
        let rest = &text[i..];
        let after = rest.strip_prefix(b"\\boxed").map(<[u8]>::trim_ascii_start);
        match (rest[0], after.and_then(|after| after.strip_prefix(b"{"))) {
            (_, Some(after)) => {
                open.push(true);
                i = text.len() - after.len();
                continue;
            }
            (b'\\', None) => i += 1,
            (b'{', None) => open.push(false),
            (b'}', None) if open.pop() == Some(true) => ends.push(i + 1),
            _ => {}
        }
        i += 1;
    }
    ends
}

fn text_of(model: &Model, path: PathId) -> Vec<u8> {
    let pieces = model.completion(path).iter().map(|token| PIECES[token.id as usize].as_bytes());
    pieces.collect::<Vec<_>>().concat()
}

/// Checks one rule after each token of a growing tree against the flat text.
fn check_growing_tree(
    ops: &[Op],
    config: &SearchConfig,
    naive: impl Fn(&[u8]) -> Vec<usize>,
) -> std::result::Result<(), TestCaseError> {
    let mut rules = StopRules::new(config, Some(TokenTexts::new(PIECES))).unwrap();
    let mut model = Model::new(0, &[8, 1, 3]);
    for op in ops {
        let Op::Push(which, tokens) = op else {
            model.apply(op);
            continue;
        };
        for &token in tokens {
            let before: Vec<Vec<u8>> = model.paths().map(|p| text_of(&model, p)).collect();
            model.apply(&Op::Push(*which, vec![token]));
            let path = PathId(which.index(before.len()) as u32);
            if !model.is_live(path) {
                continue;
            }
            let text = text_of(&model, path);
            let ends = naive(&text).iter().any(|&end| end > before[path.index()].len());
            let reason = rules.reason(config, model.tree(), path, false, false, 1);
            let expected = ends.then_some(FinishReason::Stop);
            prop_assert_eq!(reason, expected, "{}", String::from_utf8_lossy(&text));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn stop_strings_end_where_the_flat_text_says(
        ops in ops(16),
        strings in prop::sample::subsequence(vec!["abba", "a", "}}", "{\\", "d{a}b", "bab"], 0..4),
    ) {
        let config = config(&strings, Boxed::Ignored);
        check_growing_tree(&ops, &config, |text| naive_strings(text, &strings))?;
    }

    #[test]
    fn boxes_close_where_the_flat_text_says(ops in ops(16)) {
        check_growing_tree(&ops, &config(&[], Boxed::Stops), naive_boxes)?;
    }

    #[test]
    fn a_reason_does_not_depend_on_where_the_path_is_cut(
        ids in prop::collection::vec(0u32..16, 1..30),
        cuts in prop::collection::vec(any::<bool>(), 30),
    ) {
        let mut config = repetition(Repetition::Tokens, 2, 3, 8);
        config.stop.boxed = Boxed::Stops;
        config.stop.strings = vec!["abba".into()];
        let mut rules = StopRules::new(&config, Some(TokenTexts::new(PIECES))).unwrap();
        let (mut whole, mut pieces) = (Model::new(0, &[1]), Model::new(0, &[1]));
        let mut path = ROOT;
        for (at, (&id, &cut)) in (2..).zip(ids.iter().zip(&cuts)) {
            whole.push(ROOT, id, -1.0, 1.0);
            pieces.push(path, id, -1.0, 1.0);
            let one = rules.reason(&config, whole.tree(), ROOT, false, true, 1);
            let other = rules.reason(&config, pieces.tree(), path, false, true, 1);
            prop_assert_eq!(one, other);
            if cut {
                pieces.mark(path);
                path = pieces.fork(path, at);
            }
        }
    }
}
