//! Snapshots as bytes: what they begin and end with.
//!
//! Layout: `TREEPO`, the format's version (2 bytes, little endian), `s` for a search or `S` for a
//! scheduler, the content in postcard's format, CRC-32 of all before it (4 bytes, little endian).

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

const MAGIC: &[u8] = b"TREEPO";
const VERSION: u16 = 1;
const HEADER_LEN: usize = MAGIC.len() + size_of::<u16>();
const CHECKSUM_LEN: usize = size_of::<u32>();

/// What a snapshot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Content {
    Search = b's',
    Scheduler = b'S',
}

fn unusable(reason: &str) -> Error {
    Error::InvalidInput(format!("snapshot: {reason}"))
}

pub(crate) fn encode(content: Content, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = [MAGIC, &VERSION.to_le_bytes(), &[content as u8]].concat();
    bytes = postcard::to_extend(value, bytes).map_err(|error| unusable(&error.to_string()))?;
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

pub(crate) fn decode<T: DeserializeOwned>(content: Content, bytes: &[u8]) -> Result<T> {
    let too_short = || unusable("it is cut short or none of treepo's");
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(too_short)?;
    let (version, _) = rest.split_first_chunk::<2>().ok_or_else(too_short)?;
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(unusable(&format!("its format is {version}, this version reads {VERSION}")));
    }
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or_else(too_short)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(unusable("its checksum is wrong; it is cut short or damaged"));
    }
    let (kind, payload) =
        body.get(HEADER_LEN..).and_then(<[u8]>::split_first).ok_or_else(too_short)?;
    if *kind != content as u8 {
        return Err(unusable(&format!("it is none of a {content:?}")));
    }
    postcard::from_bytes(payload).map_err(|error| unusable(&error.to_string()))
}
