//! The naive oracle: the same forest, computed without scheduler and memory.

use super::TokenRule;
use crate::error::{Result, law};
use crate::forest::{Columns, Forest, TokenKind};
use crate::ids::{PathId, TreeId};
use crate::key::{Purpose, Stream};
use crate::search::{Search, SearchConfig, Segment};

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
    let mut search = Search::new(config.clone(), seed)?;
    for (key, prompt) in prompts {
        search.add_tree(*key, prompt)?;
    }
    while let Some(&segment) = search.segments().last() {
        run_segment(&mut search, rule, segment)?;
    }
    search.check()?;
    Ok(search.into_forest())
}

fn run_segment(search: &mut Search, rule: &TokenRule, segment: Segment) -> Result<()> {
    let Segment { tree, path, max_new_tokens } = segment;
    let mut tokens = search.forest().tree(tree)?.tokens(path)?;
    let stream = search.forest().path(tree, path)?.stream;
    for _ in 0..max_new_tokens {
        let token = rule.next(&tokens, stream.uniform(Purpose::Token, tokens.len() as u64));
        search.push_token(tree, path, token)?;
        tokens.push(token.id);
        if rule.eos_token_ids.contains(&token.id) {
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
    for (t, tree) in forest.trees().iter().enumerate() {
        for (p, path) in tree.paths().iter().enumerate() {
            let place = |what: &str| format!("tree {t}, path {p}: {what}");
            let stream = Stream::of_tree(seed, tree.key).of_path(p as u32);
            law(path.stream == stream, "S4", || place("stream"))?;
            let id = PathId(p as u32);
            let tokens = tree.tokens(id)?;
            law(tokens.len() == path.len() as usize, "T3", || place("length"))?;
            let numbers = tree.own_logprobs(id).zip(tree.own_entropies(id));
            let own = tree.own_ids(id).zip(numbers).zip(path.at as usize..);
            for (kind, ((token_id, (logprob, entropy)), position)) in tree.own_kinds(id).zip(own) {
                let is_prompt = position < tree.prompt_len as usize;
                law((kind == TokenKind::Prompt) == is_prompt, "T3", || place("kind"))?;
                if is_prompt {
                    continue;
                }
                let uniform = stream.uniform(Purpose::Token, position as u64);
                let token = rule.next(&tokens[..position], uniform);
                let same = token.id == token_id
                    && token.logprob.to_bits() == logprob.to_bits()
                    && token.entropy.to_bits() == entropy.to_bits();
                law(same, "T6", || place(&format!("token at {position}")))?;
            }
        }
    }
    Ok(())
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
