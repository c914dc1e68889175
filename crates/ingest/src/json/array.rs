//! Cuts a body that is one JSON array into its elements, without checking what is in them.

use super::{JsonError, text::plain_end, trim};

/// The elements of a top-level array, each with its byte position in `body` and without the space
/// around it. An element is whatever stands between two commas outside strings and brackets, and is
/// not checked further: scanning it tells what is wrong with it. An array that is itself broken
/// (cut off, a comma too many, text behind it) ends in one error.
///
/// # Errors
/// [`JsonError::InvalidJson`] with the position in `body`.
pub fn split_array(body: &[u8]) -> impl Iterator<Item = Result<(usize, &[u8]), JsonError>> {
    Elements { body, at: 0, state: State::Before }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    First,
    Next,
    Done,
}

struct Elements<'a> {
    body: &'a [u8],
    at: usize,
    state: State,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<(usize, &'a [u8]), JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let element = self.element();
        if !matches!(element, Some(Ok(_))) {
            self.state = State::Done;
        }
        element
    }
}

impl<'a> Elements<'a> {
    fn element(&mut self) -> Option<Result<(usize, &'a [u8]), JsonError>> {
        self.space();
        if self.state == State::Before {
            if self.peek() != Some(b'[') {
                return Some(self.fault("expected '['"));
            }
            self.at += 1;
            self.state = State::First;
            self.space();
            if self.peek() == Some(b']') {
                return self.end();
            }
        }
        match self.peek() {
            None => return Some(self.fault("the array is not closed")),
            Some(b',') => return Some(self.fault("a comma without a value before it")),
            Some(b']') if self.state == State::Next => {
                return Some(self.fault("a comma without a value behind it"));
            }
            Some(_) => {}
        }
        let from = self.at;
        if let Err(fault) = self.skip_element() {
            return Some(Err(fault));
        }
        let (_, raw) = trim(self.body.get(from..self.at).unwrap_or_default());
        match self.peek() {
            Some(b',') => self.at += 1,
            // The closing bracket: the next call finds it and looks behind it.
            _ => return Some(self.last(from, raw)),
        }
        self.state = State::Next;
        Some(Ok((from, raw)))
    }

    /// The last element: what follows the bracket is looked at first, so that it is told with it.
    fn last(&mut self, from: usize, raw: &'a [u8]) -> Result<(usize, &'a [u8]), JsonError> {
        match self.end() {
            Some(Err(fault)) => Err(fault),
            _ => {
                self.state = State::Done;
                Ok((from, raw))
            }
        }
    }

    /// Steps over `]` and what may follow it.
    fn end(&mut self) -> Option<Result<(usize, &'a [u8]), JsonError>> {
        self.at += 1;
        self.space();
        self.peek().map(|_| self.fault("text behind the array's end"))
    }

    /// Moves to the comma or bracket that ends the element.
    fn skip_element(&mut self) -> Result<(), JsonError> {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.skip_string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b']' if depth == 0 => return Ok(()),
                b'}' | b']' => depth = depth.saturating_sub(1),
                b',' if depth == 0 => return Ok(()),
                _ => {}
            }
            self.at += 1;
        }
        Err(JsonError::InvalidJson { position: self.at, what: "the array is not closed" })
    }

    fn skip_string(&mut self) -> Result<(), JsonError> {
        let opened = self.at;
        self.at += 1;
        loop {
            self.at = plain_end(self.body, self.at);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.at += 2,
                // A control character: scanning the element refuses it.
                Some(_) => self.at += 1,
                None => {
                    let what = "a string that is not closed";
                    return Err(JsonError::InvalidJson { position: opened, what });
                }
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn fault<T>(&self, what: &'static str) -> Result<T, JsonError> {
        Err(JsonError::InvalidJson { position: self.at, what })
    }
}
