//! The naive oracle: the same forest, computed without scheduler and memory.

use super::TokenRule;
use super::caller::Caller;
use super::rounds::Births;
use super::view::{Token, TreeView};
use crate::error::{Result, law};
use crate::forest::{Columns, Forest, SampledToken, TokenKind};
use crate::ids::TreeId;
use crate::key::{Purpose, Stream};
use crate::search::{Search, SearchConfig, Segment, TokenTexts};

/// Grows the trees of these keys and prompts, segment by segment, the youngest segment first.
///
/// # Errors
/// Those of [`Search`].
pub fn grow(
    config: &SearchConfig,
    rule: &TokenRule,
    seed: u64,
    prompts: &[(u64, Vec<u32>)],
) -> Result<Forest> {
    Ok(grow_with(config, rule, &Caller::default(), seed, prompts)?.0)
}

/// As [`grow`], with a caller that knows texts and judges segments at once. Also returns when
/// paths were made.
///
/// # Errors
/// Those of [`Search`].
pub fn grow_with(
    config: &SearchConfig,
    rule: &TokenRule,
    caller: &Caller,
    seed: u64,
    prompts: &[(u64, Vec<u32>)],
) -> Result<(Forest, Births)> {
    let mut births = Births::default();
    let mut search = Search::new(config.clone(), seed)?;
    search.set_texts(TokenTexts::new(&caller.pieces))?;
    for (key, prompt) in prompts {
        search.add_tree(*key, prompt)?;
    }
    births.note(search.forest());
    loop {
        if let Some(&segment) = search.segments().last() {
            run_segment(&mut search, rule, segment, &mut births)?;
        } else if let Some((tree, path)) = search.ended_segments().last() {
            let tokens = search.forest().tree(tree)?.tokens(path)?;
            search.report(tree, path, caller.rule(&tokens).into())?;
            births.note(search.forest());
        } else {
            break;
        }
    }
    search.check()?;
    Ok((search.into_forest(), births))
}

fn run_segment(
    search: &mut Search,
    rule: &TokenRule,
    segment: Segment,
    births: &mut Births,
) -> Result<()> {
    let Segment { tree, path, max_new_tokens } = segment;
    let mut tokens = search.forest().tree(tree)?.tokens(path)?;
    let stream = search.forest().path(tree, path)?.stream;
    for _ in 0..max_new_tokens {
        let token = rule.next(&tokens, stream.uniform(Purpose::Token, tokens.len() as u64));
        search.push_token(tree, path, token)?;
        births.note(search.forest());
        tokens.push(token.id);
        if search.forest().path(tree, path)?.finish.is_some() {
            break;
        }
    }
    Ok(())
}

/// Law T6: every sampled token is what the rule gives for exactly its own path's tokens and
/// random numbers, and no two paths of a tree share a stream.
///
/// # Errors
/// `LawBroken`.
pub fn check_tokens(forest: &Forest, rule: &TokenRule, seed: u64) -> Result<()> {
    for (t, tree) in TreeView::all(forest)?.iter().enumerate() {
        for (p, path) in tree.paths.iter().enumerate() {
            let place = |what: &str| format!("tree {t}, path {p}: {what}");
            let stream = Stream::of_tree(seed, tree.key).of_path(p as u32);
            law(path.stream == stream.0, "S4", || place("stream"))?;
            let tokens = path.ids(path.len());
            let own = tokens.len() - path.tokens.iter().filter(|token| token.owner == p).count();
            law(own == path.at as usize, "T3", || place("length"))?;
            for position in own..tokens.len() {
                let token = path.tokens[position];
                let is_prompt = position < tree.prompt_len as usize;
                let is_marked = token.kind == Some(TokenKind::Prompt);
                law(is_marked == is_prompt, "T3", || place("kind"))?;
                let uniform = stream.uniform(Purpose::Token, position as u64);
                let is_right = is_prompt || is_same(token, rule.next(&tokens[..position], uniform));
                law(is_right, "T6", || place(&format!("token at {position}")))?;
            }
        }
    }
    Ok(())
}

fn is_same(token: Token, expected: SampledToken) -> bool {
    token.id == expected.id
        && token.logprob.to_bits() == expected.logprob.to_bits()
        && token.entropy.to_bits() == expected.entropy.to_bits()
}

/// Law S4: both forests have the same trees by key, in every column.
///
/// # Errors
/// `LawBroken` naming the first tree that differs.
pub fn check_same_trees(actual: &Forest, expected: &Forest) -> Result<()> {
    law(actual.trees().len() == expected.trees().len(), "S4", || "number of trees".into())?;
    for (t, tree) in expected.trees().iter().enumerate() {
        let same_key = actual.trees().iter().position(|other| other.key == tree.key);
        let other = same_key.unwrap_or(actual.trees().len());
        let actual = actual.select(&[TreeId(other as u32)])?.columns();
        let expected = expected.select(&[TreeId(t as u32)])?.columns();
        let difference = first_difference(actual, expected);
        law(difference.is_none(), "S4", || {
            format!("tree with key {}: {}", tree.key, difference.unwrap_or_default())
        })?;
    }
    Ok(())
}

/// The first difference of two sets of columns, bit for bit.
fn first_difference(mut a: Columns, mut b: Columns) -> Option<String> {
    let bits = |column: &mut Vec<f32>| -> Vec<u32> {
        std::mem::take(column).into_iter().map(f32::to_bits).collect()
    };
    let differs = |name: &str, x: &mut Vec<f32>, y: &mut Vec<f32>| {
        (bits(x) != bits(y)).then(|| name.to_owned())
    };
    let floats = [
        differs("token_logprob", &mut a.token_logprob, &mut b.token_logprob),
        differs("token_entropy", &mut a.token_entropy, &mut b.token_entropy),
        differs("path_weight", &mut a.path_weight, &mut b.path_weight),
        differs("path_reward", &mut a.path_reward, &mut b.path_reward),
    ];
    if a != b {
        return Some(format!("{a:?}\nexpected {b:?}"));
    }
    floats.into_iter().flatten().next()
}
