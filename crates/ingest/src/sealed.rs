//! A small file of JSON with a checksum, replaced whole: what must not be forgotten and never be misread.
//!
//! ```text
//! {"format":1,"crc32c":"<8 hex digits: CRC-32C of the text of `content`>","content":{…}}
//! ```

use std::{io, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::storage::{self, Storage};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct File<T> {
    format: u32,
    crc32c: String,
    content: T,
}

/// What the file at `path` holds; `None` where there is none.
///
/// # Errors
/// The storage's, and `InvalidData` for a file that is damaged or of another version.
pub fn load<T: DeserializeOwned>(storage: &dyn Storage, path: &Path) -> io::Result<Option<T>> {
    let bytes = match storage.read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = |what: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
    };
    let file: File<&serde_json::value::RawValue> =
        serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if file.format != FORMAT {
        return Err(damaged(format!("its format {} is none of this version", file.format)));
    }
    let text = file.content.get();
    if file.crc32c != format!("{:08x}", crc32c::crc32c(text.as_bytes())) {
        return Err(damaged("its checksum does not hold".to_owned()));
    }
    serde_json::from_str(text).map(Some).map_err(|e| damaged(e.to_string()))
}

/// Replaces the file, durable on return. Its folder must be there.
///
/// # Errors
/// As [`storage::replace`].
pub fn save<T: Serialize>(storage: &dyn Storage, path: &Path, content: &T) -> io::Result<()> {
    let text = serde_json::to_string(content)?;
    let crc32c = format!("{:08x}", crc32c::crc32c(text.as_bytes()));
    let content = serde_json::value::RawValue::from_string(text)?;
    let mut bytes = serde_json::to_vec(&File { format: FORMAT, crc32c, content })?;
    bytes.push(b'\n');
    storage::replace(storage, path, &bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::storage::Disk;

    #[test]
    fn it_reads_back_and_a_flipped_bit_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let content = vec!["a".to_owned(), "é\"".to_owned()];
        assert_eq!(load::<Vec<String>>(&Disk, &path).unwrap(), None);
        save(&Disk, &path, &content).unwrap();
        let good = std::fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            if let Ok(read) = load::<Vec<String>>(&Disk, &path) {
                assert_eq!(read.as_ref(), Some(&content), "bit {bit}");
            }
        }
        std::fs::write(&path, &good).unwrap();
        assert_eq!(load::<Vec<String>>(&Disk, &path).unwrap(), Some(content));
    }
}
