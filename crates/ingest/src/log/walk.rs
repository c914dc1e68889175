//! Walks the frames of one segment file, and finds the next whole one behind damage.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use tidegate_event::{Offset, OffsetRange};

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, MAGIC};
use crate::{
    faults::{Bug, planted},
    storage::StorageFile,
};

/// How much is read at once.
pub(super) const READ_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
const PAGE_ATTEMPTS: usize = 3;

/// Where the walk stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Byte position in the file.
    pub position: u64,
    /// The offset expected there.
    pub offset: u64,
    /// The checksum the next frame must carry as its predecessor's; `None` right behind damage.
    pub chain: Option<u32>,
}

/// One whole frame.
#[derive(Debug)]
pub(super) struct Found {
    pub header: FrameHeader,
    pub position: u64,
    /// The body as stored; empty where the frame lies before what is asked for.
    pub stored: Bytes,
}

#[derive(Debug)]
pub(super) enum Step {
    Frame(Found),
    /// These offsets cannot be read; the walk goes on behind them.
    Damaged(OffsetRange),
    /// No whole frame from here to the end.
    Tail,
}

/// What a read error does to the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnReadError {
    /// It ends it.
    Fail,
    /// The pages that stay unreadable read as zeros, so that their frames count as damaged.
    Zeros,
}

pub(super) struct Walker {
    pub file: Arc<dyn StorageFile>,
    pub seed: u32,
    /// Bytes of the file that may be looked at.
    pub limit: u64,
    /// No frame may reach past this offset.
    pub bound: u64,
    pub on_error: OnReadError,
    chunk: Bytes,
    chunk_at: u64,
}

impl Walker {
    pub fn new(file: Arc<dyn StorageFile>, seed: u32, on_error: OnReadError) -> Self {
        let (limit, bound) = (0, u64::MAX);
        Self { file, seed, limit, bound, on_error, chunk: Bytes::new(), chunk_at: 0 }
    }

    /// The next frame or damage at `place`, which moves behind it. The bodies of frames that end at or
    /// before `from` are neither read nor verified.
    pub fn step(&mut self, place: &mut Place, from: u64) -> io::Result<Step> {
        loop {
            match self.header_at(place.position)?.filter(|(h, _)| self.fits(h, place)) {
                Some((header, _)) if header.base > place.offset => {
                    let position = place.position;
                    return Ok(jump(place, position, header.base));
                }
                Some((header, crc)) if follows(place, &header) => {
                    return self.take(place, header, crc, from);
                }
                _ => {}
            }
            let Some((position, base)) = self.resync(place)? else { return Ok(Step::Tail) };
            if base > place.offset {
                return Ok(jump(place, position, base));
            }
            (place.position, place.chain) = (position, None);
        }
    }

    fn take(
        &mut self,
        place: &mut Place,
        header: FrameHeader,
        crc: u32,
        from: u64,
    ) -> io::Result<Step> {
        let position = place.position;
        let body_at = position + FRAME_HEADER_BYTES as u64;
        let stored = if header.end() <= from {
            Some(Bytes::new())
        } else {
            self.view(body_at, header.stored_bytes as usize)?
                .filter(|stored| crc32c::crc32c(stored) == header.body_crc)
        };
        *place = Place {
            position: position + header.frame_bytes(),
            offset: header.end(),
            chain: Some(crc),
        };
        Ok(match stored {
            Some(stored) => Step::Frame(Found { header, position, stored }),
            None => match OffsetRange::new(Offset(header.base), Offset(header.end())) {
                Some(range) => Step::Damaged(range),
                None => Step::Tail,
            },
        })
    }

    fn header_at(&mut self, position: u64) -> io::Result<Option<(FrameHeader, u32)>> {
        let bytes = self.view(position, FRAME_HEADER_BYTES)?;
        Ok(bytes.and_then(|bytes| FrameHeader::decode(&bytes, self.seed)))
    }

    /// A header is only believed where its frame can be: behind the offset, within the bounds.
    fn fits(&self, header: &FrameHeader, place: &Place) -> bool {
        header.count > 0 && header.base >= place.offset && header.end() <= self.bound
    }

    /// The next believable frame behind `place.position` that lies whole within the limit.
    fn resync(&mut self, place: &Place) -> io::Result<Option<(u64, u64)>> {
        let mut at = place.position + 1;
        loop {
            let left = usize::try_from(self.limit.saturating_sub(at)).unwrap_or(usize::MAX);
            let Some(window) = self.view(at, left.min(READ_BYTES))? else { return Ok(None) };
            for hit in memmem::find_iter(&window, &MAGIC) {
                let position = at + hit as u64;
                let header = self.header_at(position)?.map(|(header, _)| header);
                let whole = |h: &FrameHeader| position + h.frame_bytes() <= self.limit;
                if let Some(h) = header.filter(|h| self.fits(h, place) && whole(h)) {
                    return Ok(Some((position, h.base)));
                }
            }
            if left <= READ_BYTES {
                return Ok(None);
            }
            at += (window.len() - (MAGIC.len() - 1)) as u64;
        }
    }

    /// `len` bytes at `at`, without a copy where they are in the chunk read last; `None` where the
    /// limit or the file ends before.
    fn view(&mut self, at: u64, len: usize) -> io::Result<Option<Bytes>> {
        if at.saturating_add(len as u64) > self.limit {
            return Ok(None);
        }
        if let Some(view) = self.cached(at, len) {
            return Ok(Some(view));
        }
        self.load(at, len)?;
        Ok(self.cached(at, len))
    }

    fn cached(&self, at: u64, len: usize) -> Option<Bytes> {
        let from = usize::try_from(at.checked_sub(self.chunk_at)?).ok()?;
        let to = from.checked_add(len)?;
        (to <= self.chunk.len()).then(|| self.chunk.slice(from..to))
    }

    fn load(&mut self, at: u64, len: usize) -> io::Result<()> {
        let left = usize::try_from(self.limit - at).unwrap_or(usize::MAX);
        let want = len.max(READ_BYTES).min(left);
        // The buffer is used again where nobody holds a body of it any more.
        let mut buffer = std::mem::take(&mut self.chunk).try_into_mut().unwrap_or_default();
        if buffer.capacity() < want {
            buffer = BytesMut::zeroed(want);
        }
        buffer.resize(want, 0);
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.on_error == OnReadError::Fail => return Err(error),
                Err(_) => {
                    let page = rest.len().min(PAGE_BYTES);
                    let page = rest.get_mut(..page).unwrap_or_default();
                    filled += self.read_page(page, at + filled as u64);
                }
            }
        }
        buffer.truncate(filled);
        (self.chunk, self.chunk_at) = (buffer.freeze(), at);
        Ok(())
    }

    /// Reads up to one page, as zeros where it stays unreadable.
    fn read_page(&self, page: &mut [u8], at: u64) -> usize {
        for _ in 0..PAGE_ATTEMPTS {
            match self.file.read_at(page, at) {
                Ok(n) if n > 0 => return n,
                _ => {}
            }
        }
        tracing::error!(position = at, bytes = page.len(), "a page of the log cannot be read");
        page.fill(0);
        page.len()
    }
}

/// Whether the frame proves that what was read before it is what was written before it.
fn follows(place: &Place, header: &FrameHeader) -> bool {
    let chained = place.chain.is_none_or(|crc| crc == header.previous_crc);
    chained || planted(Bug::ChecksumsNotChained)
}

/// Moves `place` to the frame at `position` whose first offset is `base`, past what is damaged.
fn jump(place: &mut Place, position: u64, base: u64) -> Step {
    let from = std::mem::replace(place, Place { position, offset: base, chain: None }).offset;
    OffsetRange::new(Offset(from), Offset(base)).map_or(Step::Tail, Step::Damaged)
}
