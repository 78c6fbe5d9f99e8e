//! Text rules, recomputed on the whole text.

use std::collections::BTreeMap;

/// Where the first of `strings` that `text` contains begins.
pub(super) fn find_string(text: &[u8], strings: &[String]) -> Option<usize> {
    strings.iter().filter_map(|string| find(text, string.as_bytes())).min()
}

fn find(text: &[u8], string: &[u8]) -> Option<usize> {
    (0..text.len()).find(|&start| text[start..].starts_with(string))
}

/// Where the first complete `\boxed{..}` of `text` begins: white space may come before its brace,
/// braces nest, and a backslash or brace behind a backslash that counts stands for itself.
pub(super) fn find_boxed(text: &[u8]) -> Option<usize> {
    let is_escaped: Vec<bool> = escapes(text);
    (0..text.len()).find(|&start| {
        let Some(rest) = text[start..].strip_prefix(b"\\boxed") else { return false };
        let brace = text.len() - rest.trim_ascii_start().len();
        !is_escaped[start] && text.get(brace) == Some(&b'{') && closes(text, &is_escaped, brace)
    })
}

/// For each byte whether the one before it is a backslash that is not escaped itself.
fn escapes(text: &[u8]) -> Vec<bool> {
    let mut is_escaped = vec![false; text.len()];
    for i in 1..text.len() {
        is_escaped[i] = text[i - 1] == b'\\' && !is_escaped[i - 1];
    }
    is_escaped
}

/// Whether the brace at `brace` closes.
fn closes(text: &[u8], is_escaped: &[bool], brace: usize) -> bool {
    let mut depth = 0;
    for i in (brace..text.len()).filter(|&i| !is_escaped[i]) {
        match text[i] {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return true;
        }
    }
    false
}

/// Whether some piece of `len` elements occurs `count` times, overlapping ones included.
pub(super) fn repeats<T: Ord>(sequence: &[T], len: u32, count: u32) -> bool {
    let mut occurrences: BTreeMap<&[T], u32> = BTreeMap::new();
    for piece in sequence.windows(len as usize) {
        *occurrences.entry(piece).or_default() += 1;
    }
    occurrences.values().any(|&n| n >= count)
}
