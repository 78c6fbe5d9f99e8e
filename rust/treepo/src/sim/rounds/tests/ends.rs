//! Why paths end.

use super::{Hand, config, count, right, wrong};
use crate::error::Result;
use crate::forest::FinishReason::{Length, Pruned, Repetition, Stop};
use crate::forest::ForkOrigin;
use crate::search::{
    Boxed, PruneBy, PruneConfig, PrunedLeaves, Repetition as RepetitionIn, SearchConfig,
    StopConfig, Verdicts,
};
use crate::sim::caller::{Caller, Judge, Ruling};
use crate::sim::rounds::Tally;

/// One path of four segments of two tokens.
fn chain() -> SearchConfig {
    SearchConfig { width: 1, initial_divergence: 1, max_depth: 4, ..config() }
}

fn caller(pieces: &[&str]) -> Caller {
    let pieces = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
    Caller { pieces, judge: None }
}

fn chain_of(ids: &[u32], reason: crate::FinishReason) -> Hand {
    let mut hand = Hand::new(1);
    ids.chunks(2).for_each(|segment| hand.run(0, segment));
    hand.end(0, reason);
    hand
}

#[test]
fn a_stop_string_ends_a_path_wherever_tokens_and_segments_cut_it() {
    let strings = vec!["STOP".to_owned()];
    let config = SearchConfig { stop: StopConfig { strings, ..chain().stop }, ..chain() };
    let caller = caller(&["a", "xS", "TO", "Px", "STO"]);
    let check = |ids: &[u32], reason| chain_of(ids, reason).check_with(&config, &caller);
    let tally = right(check(&[0, 1, 2, 3], Stop));
    assert_eq!(count(&tally, "stop_strings_across_segments"), 1);
    assert_eq!(count(&right(check(&[0, 0, 4, 3], Stop)), "stop_strings_across_segments"), 0);
    wrong(check(&[0, 1, 2, 3, 0, 0, 0, 0], Length), "T5");
    wrong(check(&[0, 1, 2], Stop), "T5");
    wrong(check(&[0, 1, 2, 3], Length), "T5");
    right(check(&[0, 1, 2, 0, 3, 0, 0, 0], Length));
}

#[test]
fn a_complete_box_ends_a_path() {
    let config =
        SearchConfig { stop: StopConfig { boxed: Boxed::Stops, ..chain().stop }, ..chain() };
    let caller = caller(&["a", "\\box", "ed{", "{", "}", "ed{}"]);
    let check = |ids: &[u32], reason| chain_of(ids, reason).check_with(&config, &caller);
    assert_eq!(count(&right(check(&[0, 1, 2, 4], Stop)), "boxed_across_segments"), 1);
    right(check(&[1, 2, 3, 4, 0, 4], Stop));
    right(check(&[1, 5], Stop));
    wrong(check(&[1, 2, 3, 4], Stop), "T5");
    wrong(check(&[1, 2, 3, 4, 0, 4, 0, 0], Length), "T5");
    right(check(&[4, 3, 4, 0, 2, 4, 0, 0], Length));
}

#[test]
fn repetition_is_looked_for_at_segment_ends_only() {
    let stop = StopConfig {
        repetition: RepetitionIn::Tokens,
        repetition_len: 1,
        repetition_count: 3,
        ..chain().stop
    };
    let config = SearchConfig { stop: stop.clone(), ..chain() };
    let check = |ids: &[u32], reason| chain_of(ids, reason).check(&config);
    right(check(&[1, 1, 1, 2], Repetition));
    wrong(check(&[1, 1, 1], Repetition), "T5");
    wrong(check(&[1, 1, 1, 2, 3, 4, 5, 6], Length), "T5");
    right(check(&[1, 1, 2, 3, 4, 5, 6, 1], Length));
    let window = StopConfig { repetition_window: 2, ..stop };
    let config = SearchConfig { stop: window, ..chain() };
    right(chain_of(&[1, 1, 1, 2, 3, 4, 5, 6], Length).check(&config));
}

#[test]
fn repeated_bytes_overlap() {
    let stop = StopConfig {
        repetition: RepetitionIn::Bytes,
        repetition_len: 2,
        repetition_count: 4,
        ..chain().stop
    };
    let config = SearchConfig { stop, ..chain() };
    let caller = caller(&["a", "b", "aaa"]);
    let check = |ids: &[u32], reason| chain_of(ids, reason).check_with(&config, &caller);
    right(check(&[2, 1, 2, 1], Repetition));
    right(check(&[0, 1, 2, 0, 0, 0], Repetition));
    right(check(&[2, 1, 0, 1, 0, 1, 0, 1], Length));
    wrong(check(&[2, 1, 0, 1], Repetition), "T5");
}

/// One path whose tokens have these log-probabilities.
fn by_logprobs(logprobs: &[f32], reason: crate::FinishReason) -> Hand {
    let mut hand = Hand::new(1);
    for segment in logprobs.chunks(2) {
        let tokens: Vec<_> = segment.iter().map(|&logprob| (1, logprob, 1.0)).collect();
        hand.push(0, &tokens);
        hand.run(0, &[]);
    }
    hand.end(0, reason);
    hand
}

fn pruning(prune: PruneConfig) -> SearchConfig {
    SearchConfig { prune: PruneConfig { by: PruneBy::Logprob, window: 3, ..prune }, ..chain() }
}

#[test]
fn a_path_is_pruned_exactly_where_its_windowed_confidence_is_low() {
    let config = pruning(PruneConfig { threshold: -2.0, ..PruneConfig::default() });
    let check = |logprobs: &[f32], reason| by_logprobs(logprobs, reason).check(&config);
    assert_eq!(count(&right(check(&[-1.0, -1.0, -5.0], Pruned)), "confidence_prunes"), 1);
    right(check(&[-1.0, -1.0, -3.0, -3.0, -1.0, -1.0, -9.0, -9.0], Length));
    wrong(check(&[-1.0, -1.0, -3.0], Pruned), "T5");
    wrong(check(&[-1.0, -1.0, -5.0, -5.0], Pruned), "T5");
    wrong(check(&[-1.0, -1.0, -5.0, 0.0, 0.0, 0.0, 0.0, 0.0], Length), "T5");
    wrong(check(&[-1.0, -9.0], Pruned), "T5");
}

/// A leaf of these log-probabilities, then, from the prompt, another one.
fn warmed_up(first: &[f32], second: &[f32], reason: crate::FinishReason) -> Result<Tally> {
    let warmup = PruneConfig { warmup_leaves: 1, ..PruneConfig::default() };
    let config = SearchConfig { width: 2, branch_factor: 1, ..pruning(warmup) };
    let mut hand = by_logprobs(first, Length);
    hand.restart(0, 1);
    for segment in second.chunks(2) {
        let tokens: Vec<_> = segment.iter().map(|&logprob| (1, logprob, 1.0)).collect();
        hand.push(1, &tokens);
        hand.run(1, &[]);
    }
    hand.end(1, reason);
    hand.check(&config)
}

#[test]
fn a_threshold_comes_from_the_first_leaves() {
    let first = [-1.0, -1.0, -4.0, -1.0, -1.0, -1.0, -1.0, -1.0]; // lowest confidence -2
    let low = [-2.0, -2.0, -3.0];
    let high = [-2.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0];
    assert_eq!(count(&right(warmed_up(&first, &low, Pruned)), "warmed_up_prunes"), 1);
    right(warmed_up(&first, &high, Length));
    wrong(warmed_up(&first, &high[..3], Pruned), "T5");
    let goes_on = [low.as_slice(), &high[3..]].concat();
    wrong(warmed_up(&first, &goes_on, Length), "T5");
    wrong(warmed_up(&low, &high, Length), "T5");
}

/// A judge and a first token on whose segment it rules like this.
fn ruling(wanted: impl Fn(Ruling) -> bool) -> (Caller, [u32; 2]) {
    let judge = Judge { salt: 5, stop_permille: 300, prune_permille: 300, max_delay: 0 };
    let ids = (0..9).find(|&id| wanted(judge.rule(&[7, id, 1]))).expect("some token");
    (Caller { pieces: Vec::new(), judge: Some(judge) }, [ids, 1])
}

#[test]
fn verdicts_stop_prune_and_let_go_on() {
    let config = SearchConfig { verdicts: Verdicts::Segments, max_depth: 2, ..chain() };
    let (stopper, ids) = ruling(|ruling| ruling == Ruling::Stop);
    right(chain_of(&ids, Stop).check_with(&config, &stopper));
    wrong(chain_of(&ids, Pruned).check_with(&config, &stopper), "T5");
    wrong(chain_of(&[ids[0], 1, 1, 1], Length).check_with(&config, &stopper), "T5");
    let (pruner, ids) = ruling(|ruling| ruling == Ruling::Prune);
    right(chain_of(&ids, Pruned).check_with(&config, &pruner));
    wrong(chain_of(&ids, Stop).check_with(&config, &pruner), "T5");
    let (goer, ids) = ruling(|ruling| matches!(ruling, Ruling::Continue(_)));
    right(chain_of(&[ids[0], 1, 1, 1], Length).check_with(&config, &goer));
    wrong(chain_of(&ids, Pruned).check_with(&config, &goer), "T5");
}

#[test]
fn a_low_score_prunes() {
    let is_low = |ruling| matches!(ruling, Ruling::Continue(score) if score < 0.5);
    let (caller, ids) = ruling(is_low);
    let prune = PruneConfig { by: PruneBy::Score, threshold: 0.5, ..PruneConfig::default() };
    let verdicts = Verdicts::Segments;
    let config = SearchConfig { verdicts, max_depth: 2, prune, ..chain() };
    right(chain_of(&ids, Pruned).check_with(&config, &caller));
    wrong(chain_of(&[ids[0], 1, 1, 1], Length).check_with(&config, &caller), "T5");
    let lenient = PruneConfig { threshold: 0.0, ..prune };
    let config = SearchConfig { prune: lenient, ..config };
    right(chain_of(&[ids[0], 1, 1, 1], Length).check_with(&config, &caller));
    wrong(chain_of(&ids, Pruned).check_with(&config, &caller), "T5");
}

/// Two paths of three tokens; the first is pruned and, if asked, one more starts at the prompt.
fn with_pruned(num_more: u32, leaves: PrunedLeaves) -> Result<Tally> {
    let prune = PruneConfig { threshold: -2.0, leaves, ..PruneConfig::default() };
    let config = SearchConfig { width: 2, initial_divergence: 2, ..pruning(prune) };
    let mut hand = Hand::new(2);
    hand.push(0, &[(1, -3.0, 1.0); 2]);
    hand.run(0, &[]);
    hand.push(0, &[(1, -3.0, 1.0)]);
    hand.run(0, &[]);
    hand.end(0, Pruned);
    hand.fill(1..2, 9);
    for path in 2..2 + num_more {
        hand.fork(0, 1, ForkOrigin::Fallback);
        hand.fill(path..path + 1, 9);
    }
    hand.check(&config)
}

#[test]
fn pruned_leaves_count_or_are_replaced() {
    right(with_pruned(0, PrunedLeaves::Count));
    wrong(with_pruned(1, PrunedLeaves::Count), "T2");
    wrong(with_pruned(0, PrunedLeaves::AreReplaced), "T2");
    wrong(with_pruned(2, PrunedLeaves::AreReplaced), "T2");
}
