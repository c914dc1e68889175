//! Cuts a stream of lines into batches, remembering which line each event stands on.

use std::io::BufRead;

use crate::ctl::fault::Fault;

/// No line longer than this is read: no server takes such an event.
const LINE_BYTES_MAX: usize = 64 << 20;

/// Events that travel together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Names it among the batches of this file, the same each time the file is sent.
    pub name: String,
    /// The line each event stands on, from 1.
    pub lines: Vec<u64>,
    /// Where each event ends in `body`, its line end included.
    pub ends: Vec<usize>,
    /// The events, one a line.
    pub body: Vec<u8>,
}

impl Batch {
    fn new(number: u64) -> Self {
        Self { name: number.to_string(), lines: Vec::new(), ends: Vec::new(), body: Vec::new() }
    }

    /// First and last line.
    #[must_use]
    pub fn span(&self) -> (u64, u64) {
        let first = self.lines.first().copied().unwrap_or(0);
        (first, self.lines.last().copied().unwrap_or(first))
    }

    /// Event number `index`, without its line end.
    #[must_use]
    pub fn event(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).and_then(|i| self.ends.get(i)).copied().unwrap_or(0);
        let end = self.ends.get(index).copied().unwrap_or(start);
        self.body.get(start..end).unwrap_or_default().trim_ascii_end()
    }

    /// Two batches of half the events each; `None` for a single event.
    #[must_use]
    pub fn halves(&self) -> Option<(Self, Self)> {
        let middle = self.lines.len() / 2;
        let cut = *self.ends.get(middle.checked_sub(1)?)?;
        let (lines, rest) = self.lines.split_at(middle);
        let (ends, rest_ends) = self.ends.split_at(middle);
        let (body, rest_body) = self.body.split_at(cut);
        let first = Self {
            name: format!("{}a", self.name),
            lines: lines.to_vec(),
            ends: ends.to_vec(),
            body: body.to_vec(),
        };
        let second = Self {
            name: format!("{}b", self.name),
            lines: rest.to_vec(),
            ends: rest_ends.iter().map(|end| end - cut).collect(),
            body: rest_body.to_vec(),
        };
        Some((first, second))
    }
}

/// Reads batches: at most so many events and bytes each, but always one event.
#[derive(Debug)]
pub struct Batches<R> {
    input: R,
    events_max: usize,
    bytes_max: usize,
    number: u64,
    line: u64,
    held: Option<(u64, Vec<u8>)>,
}

impl<R: BufRead> Batches<R> {
    /// Over `input`.
    pub fn new(input: R, events_max: usize, bytes_max: usize) -> Self {
        Self { input, events_max, bytes_max, number: 0, line: 0, held: None }
    }

    /// The next batch; `None` at the end.
    ///
    /// # Errors
    /// [`Fault::Failed`] where the input cannot be read or is not one event a line.
    pub fn read(&mut self) -> Result<Option<Batch>, Fault> {
        let mut batch = Batch::new(self.number);
        while batch.lines.len() < self.events_max {
            let Some((line, event)) = self.event()? else { break };
            if !batch.lines.is_empty() && batch.body.len() + event.len() + 1 > self.bytes_max {
                self.held = Some((line, event));
                break;
            }
            batch.body.extend_from_slice(&event);
            batch.body.push(b'\n');
            batch.lines.push(line);
            batch.ends.push(batch.body.len());
        }
        self.number += 1;
        Ok((!batch.lines.is_empty()).then_some(batch))
    }

    /// The next line that is not blank, without the white space around it.
    fn event(&mut self) -> Result<Option<(u64, Vec<u8>)>, Fault> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        loop {
            let mut text = Vec::new();
            let mut limited = std::io::Read::take(&mut self.input, LINE_BYTES_MAX as u64);
            let read = limited
                .read_until(b'\n', &mut text)
                .map_err(|e| Fault::failed(format!("cannot read the input: {e}"), ""))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read == LINE_BYTES_MAX {
                return Err(Fault::failed(
                    format!("line {} is longer than {} MiB", self.line, LINE_BYTES_MAX >> 20),
                    "give one event, a JSON object, on each line",
                ));
            }
            let mut event = text.trim_ascii();
            if self.line == 1 {
                event = event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event);
                refuse_pretty(event)?;
            }
            if !event.is_empty() {
                return Ok(Some((self.line, event.to_vec())));
            }
        }
    }
}

/// A first line that opens an object or an array and stops there is no event but the start of a
/// document over many lines, of which every line would be rejected.
fn refuse_pretty(first: &[u8]) -> Result<(), Fault> {
    match first {
        b"[" => Err(Fault::failed(
            "the input is one JSON array over many lines",
            "make it one event a line:  jq -c '.[]' FILE",
        )),
        b"{" => Err(Fault::failed(
            "the input is JSON over many lines",
            "make it one event a line:  jq -c . FILE",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &str, events: usize, bytes: usize) -> Vec<Batch> {
        let mut batches = Batches::new(text.as_bytes(), events, bytes);
        std::iter::from_fn(|| batches.read().unwrap()).collect()
    }

    #[test]
    fn lines_are_counted_over_blank_ones() {
        let batches = all("\u{feff}{\"a\":1}\r\n\n  \n{\"a\":2}\n{\"a\":3}", 2, 1_000);
        assert_eq!(batches.len(), 2);
        let first = batches.first().unwrap();
        assert_eq!(first.lines, [1, 4]);
        assert_eq!(first.body, b"{\"a\":1}\n{\"a\":2}\n");
        assert_eq!(first.event(1), b"{\"a\":2}");
        assert_eq!(batches.last().unwrap().lines, [5]);
    }

    #[test]
    fn a_line_larger_than_a_batch_travels_alone() {
        let sizes: Vec<_> =
            all("1\n22222222\n3\n4\n", 10, 4).iter().map(|b| b.lines.clone()).collect();
        assert_eq!(sizes, [vec![1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn documents_over_many_lines_are_refused_with_advice() {
        for text in ["[\n{}\n]", "{\n\"a\": 1\n}"] {
            let fault = Batches::new(text.as_bytes(), 10, 10).read().unwrap_err();
            assert!(fault.to_string().contains("jq -c"), "{fault}");
        }
    }

    proptest! {
        #[test]
        fn batches_and_their_halves_keep_every_event_in_order(
            events in prop::collection::vec("[a-z]{1,20}", 0..40),
            events_max in 1usize..10,
            bytes_max in 1usize..60,
        ) {
            let text = events.iter().map(|e| format!("{e}\n")).collect::<String>();
            let mut parts = all(&text, events_max, bytes_max);
            for part in &parts {
                prop_assert!(part.lines.len() <= events_max);
                prop_assert!(part.body.len() <= bytes_max || part.lines.len() == 1);
            }
            parts = parts
                .into_iter()
                .flat_map(|b| b.halves().map_or_else(|| vec![b], |(x, y)| vec![x, y]))
                .collect();
            let mut found = Vec::new();
            for part in &parts {
                for (index, line) in part.lines.iter().enumerate() {
                    found.push((*line, String::from_utf8(part.event(index).to_vec()).unwrap()));
                }
            }
            let expected: Vec<_> = (1u64..).zip(events).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
