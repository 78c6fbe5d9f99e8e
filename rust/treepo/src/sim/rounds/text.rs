//! Text rules, recomputed on the whole text.

use std::collections::BTreeMap;

/// Where the first of `strings` that `text` contains begins.
pub(super) fn find_string(text: &[u8], strings: &[String]) -> Option<usize> {
    strings.iter().filter_map(|string| find(text, string.as_bytes())).min()
}

fn find(text: &[u8], string: &[u8]) -> Option<usize> {
    (0..text.len()).find(|&start| text[start..].starts_with(string))
}

/// Where the first complete `\boxed{..}` of `text` begins.
pub(super) fn find_boxed(text: &[u8]) -> Option<usize> {
    let opening = b"\\boxed{";
    (0..text.len())
        .find(|&start| text[start..].starts_with(opening) && closes(&text[start + opening.len()..]))
}

/// Whether the brace that is open before `text` closes within it.
fn closes(text: &[u8]) -> bool {
    let mut depth = 1;
    for &byte in text {
        match byte {
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
