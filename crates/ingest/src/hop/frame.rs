//! Messages on a stream of HTTP/2: each with its length in front, the last one perhaps later.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use crate::budget::{Full, Permit};

/// Bytes taken from the budget at once while a message comes, at least.
const STEP_BYTES: u64 = 64 << 10;

/// A body that is known, or known but for its last message.
#[derive(Debug, Default)]
pub struct Script {
    ready: VecDeque<Bytes>,
    later: Option<oneshot::Receiver<Bytes>>,
}

impl Script {
    /// With one more message: its length, then itself.
    #[must_use]
    pub fn then(self, message: impl Into<Bytes>) -> Self {
        let message = message.into();
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes();
        self.bare(Bytes::copy_from_slice(&length)).bare(message)
    }

    /// With bytes as they are.
    #[must_use]
    pub fn bare(mut self, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.ready.push_back(bytes);
        }
        self
    }

    /// With a last message that comes later. Whoever drops the sender without one cuts the stream.
    #[must_use]
    pub fn later(mut self, message: oneshot::Receiver<Bytes>) -> Self {
        self.later = Some(message);
        self
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(bytes) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let Some(later) = &mut self.later else { return Poll::Ready(None) };
        let sent = std::task::ready!(Pin::new(later).poll(cx));
        self.later = None;
        let cut = || io::Error::new(io::ErrorKind::ConnectionAborted, "nothing more is sent");
        let message = sent.map_err(|_| cut())?;
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes();
        if !message.is_empty() {
            self.ready.push_back(message);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(&length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.later.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.later {
            None => SizeHint::with_exact(self.ready.iter().map(|bytes| bytes.len() as u64).sum()),
            Some(_) => SizeHint::default(),
        }
    }
}

/// Why a message did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The stream ended before it was whole.
    #[error("the stream ended within a message")]
    Cut,
    /// It says that it is larger than it may be.
    #[error("the message is larger than it may be")]
    TooLarge,
    /// There is no memory for it.
    #[error(transparent)]
    Full(#[from] Full),
}

/// Reads messages off a stream.
pub struct Frames {
    body: Incoming,
    buffer: BytesMut,
}

impl Frames {
    /// Of this stream.
    #[must_use]
    pub fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next message, of at most `most` bytes.
    ///
    /// # Errors
    /// [`FrameFault`]; the stream cannot be read on.
    pub async fn next(
        &mut self,
        most: u64,
        permit: Option<&mut Permit>,
    ) -> Result<Bytes, FrameFault> {
        let mut paid = Paid { permit, bytes: 0 };
        self.fill(4, &mut paid).await?;
        let length = self.buffer.get_u32_le();
        if most < u64::from(length) {
            return Err(FrameFault::TooLarge);
        }
        let length = length as usize;
        self.fill(length, &mut paid).await?;
        Ok(self.buffer.split_to(length).freeze())
    }

    /// All that comes, of at most `most` bytes.
    ///
    /// # Errors
    /// [`FrameFault`]
    pub async fn rest(
        mut self,
        most: u64,
        permit: Option<&mut Permit>,
    ) -> Result<Bytes, FrameFault> {
        let mut paid = Paid { permit, bytes: 0 };
        while let Some(bytes) = self.more().await? {
            if most < (self.buffer.len() + bytes.len()) as u64 {
                return Err(FrameFault::TooLarge);
            }
            paid.up_to((self.buffer.len() + bytes.len()) as u64)?;
            self.buffer.extend_from_slice(&bytes);
        }
        Ok(self.buffer.freeze())
    }

    async fn fill(&mut self, length: usize, paid: &mut Paid<'_>) -> Result<(), FrameFault> {
        while self.buffer.len() < length {
            let bytes = self.more().await?.ok_or(FrameFault::Cut)?;
            paid.up_to((self.buffer.len() + bytes.len()) as u64)?;
            self.buffer.extend_from_slice(&bytes);
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<Option<Bytes>, FrameFault> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|_| FrameFault::Cut)?;
            if let Ok(bytes) = frame.into_data()
                && !bytes.is_empty()
            {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

struct Paid<'a> {
    permit: Option<&'a mut Permit>,
    bytes: u64,
}

impl Paid<'_> {
    fn up_to(&mut self, bytes: u64) -> Result<(), Full> {
        let (Some(permit), Some(owed)) = (&mut self.permit, bytes.checked_sub(self.bytes)) else {
            return Ok(());
        };
        if owed != 0 {
            let step = owed.max(STEP_BYTES.min(bytes));
            permit.grow(step)?;
            self.bytes += step;
        }
        Ok(())
    }
}
