//! Protobuf's wire format, read over slices: fields one after the other, nothing copied.
//!
//! As "Protocol Buffers: Encoding" has it. Groups are refused: neither OTLP nor Loki has any, and to skip
//! one is to nest without bound.

/// A field's value as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Raw<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("a number has more than 64 bits")]
    Varint,
    #[error("it ends within a field")]
    Cut,
    #[error("a field says that it is longer than its message")]
    Length,
    #[error("a field has a number that cannot be")]
    Number,
    #[error("groups are not taken")]
    Group,
    #[error("a field has a wire type that is none")]
    Type,
}

/// Reads the fields of one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field and its number; `None` at the end.
    #[inline]
    pub(super) fn field(&mut self) -> Result<Option<(u32, Raw<'a>)>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or(WireError::Number)?;
        let raw = match tag & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(u64::from_le_bytes(self.take()?)),
            2 => Raw::Bytes(self.bytes()?),
            3 | 4 => return Err(WireError::Group),
            5 => Raw::Fixed32(u32::from_le_bytes(self.take()?)),
            _ => return Err(WireError::Type),
        };
        Ok(Some((number, raw)))
    }

    /// The next number of what is packed; `None` at the end.
    pub(super) fn packed_varint(&mut self) -> Result<Option<u64>, WireError> {
        if self.0.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    /// The same of eight bytes each.
    pub(super) fn packed_fixed64(&mut self) -> Result<Option<u64>, WireError> {
        if self.0.is_empty() { Ok(None) } else { Ok(Some(u64::from_le_bytes(self.take()?))) }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        if let Some((first, rest)) = self.0.split_first()
            && *first < 0x80
        {
            self.0 = rest;
            return Ok(u64::from(*first));
        }
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = self.0.split_first().ok_or(WireError::Cut)?;
            self.0 = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && 1 < *byte {
                return Err(WireError::Varint);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(WireError::Cut)?;
        self.0 = rest;
        Ok(*bytes)
    }

    #[inline]
    fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let length = usize::try_from(self.varint()?).map_err(|_| WireError::Length)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(WireError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// A number that was folded so that small negative ones are short.
pub(super) fn zigzag(folded: u64) -> i32 {
    // As the format says: of more than 32 bits only those count.
    let folded = (folded & 0xffff_ffff) as u32;
    (folded >> 1).cast_signed() ^ -(folded & 1).cast_signed()
}

/// Writes what answers and tests need.
pub(super) mod put {
    pub(in super::super) fn varint(into: &mut Vec<u8>, mut value: u64) {
        while 0x80 <= value {
            into.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        into.push(value as u8);
    }

    pub(in super::super) fn number(into: &mut Vec<u8>, field: u64, value: u64) {
        varint(into, field << 3);
        varint(into, value);
    }

    pub(in super::super) fn bytes(into: &mut Vec<u8>, field: u64, bytes: &[u8]) {
        varint(into, field << 3 | 2);
        varint(into, bytes.len() as u64);
        into.extend_from_slice(bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u32, Raw<'_>)>, WireError> {
        let mut reader = Reader(bytes);
        let mut found = Vec::new();
        while let Some(field) = reader.field()? {
            found.push(field);
        }
        Ok(found)
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, error) in [
            (&[0x08][..], WireError::Cut),
            (&[0x08, 0x80], WireError::Cut),
            (&[0x09, 1, 2, 3, 4, 5, 6, 7], WireError::Cut),
            (&[0x0d, 1, 2, 3], WireError::Cut),
            (&[0x0a, 5, 1], WireError::Length),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], WireError::Length),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], WireError::Varint),
            (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1], WireError::Varint),
            (&[0x00, 1], WireError::Number),
            (&[0x80, 0x80, 0x80, 0x80, 0x10, 1], WireError::Number),
            (&[0x0b, 0x0c], WireError::Group),
            (&[0x0c], WireError::Group),
            (&[0x0e], WireError::Type),
            (&[0x0f], WireError::Type),
        ] {
            assert_eq!(all(bytes), Err(error), "{bytes:?}");
        }
        let largest = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(all(&largest), Ok(vec![(1, Raw::Varint(u64::MAX))]));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            fields in prop::collection::vec((1u64..1 << 29, any::<u64>(), prop::collection::vec(any::<u8>(), 0..200), 0..4u8), 0..20),
        ) {
            let mut bytes = Vec::new();
            for (number, value, text, kind) in &fields {
                match kind {
                    0 => put::number(&mut bytes, *number, *value),
                    1 => { put::varint(&mut bytes, number << 3 | 1); bytes.extend(value.to_le_bytes()); }
                    2 => put::bytes(&mut bytes, *number, text),
                    _ => { put::varint(&mut bytes, number << 3 | 5); bytes.extend((*value as u32).to_le_bytes()); }
                }
            }
            let found = all(&bytes).unwrap();
            prop_assert_eq!(found.len(), fields.len());
            for ((number, raw), (sent, value, text, kind)) in found.into_iter().zip(&fields) {
                prop_assert_eq!(u64::from(number), *sent);
                let expected = match kind {
                    0 => Raw::Varint(*value),
                    1 => Raw::Fixed64(*value),
                    2 => Raw::Bytes(text),
                    _ => Raw::Fixed32(*value as u32),
                };
                prop_assert_eq!(raw, expected);
            }
        }

        #[test]
        fn any_bytes_are_read_to_their_end_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(found) = all(&bytes) {
                prop_assert!(found.len() <= bytes.len());
            }
        }

        #[test]
        fn folded_numbers_unfold(number in any::<i32>()) {
            let folded = ((number << 1) ^ (number >> 31)).cast_unsigned();
            prop_assert_eq!(zigzag(u64::from(folded)), number);
        }
    }
}
