//! What becomes of a batch that was to be appended; and a schema's content on its way to a writer.
//!
//! ```text
//! outcome := version u8 (1) · kind u8
//!            · 0: appended: partition u32 · [first u64 · end u64] · deduplicated index u32*
//!            | 1: not appended: reason · after u64 (ms)
//!            | 2: not known to be appended, or not
//!            | 3: unknown schemas, nothing appended: hash [16]*
//! schema  := version u8 (1) · [tenant] · type · canonical text
//! ```

use std::time::Duration;

use tidegate_event::{EventType, Offset, OffsetRange, Partition, TenantId};

use super::{
    verdict::{put_shed, shed},
    wire::{Malformed, Reader, Writer},
};
use crate::{
    shed::ShedReason,
    writer::{AppendError, Appended},
};

const VERSION: u8 = 1;

/// A callee's answer to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable.
    Appended(Appended),
    /// Nothing was appended.
    Refused(AppendError),
    /// It may have been appended: whoever was asked does not know.
    Unknown,
    /// Nothing was appended: these schemas' contents are to be told first.
    UnknownSchemas(Vec<[u8; 16]>),
}

impl Outcome {
    /// What an append said.
    #[must_use]
    pub fn of(result: Result<Appended, AppendError>) -> Self {
        match result {
            Ok(appended) => Self::Appended(appended),
            Err(AppendError::Unknown) => Self::Unknown,
            Err(error) => Self::Refused(error),
        }
    }

    /// The same, for whoever asked. Who has no schemas to tell knows nothing of such an answer.
    ///
    /// # Errors
    /// As the append's.
    pub fn result(self) -> Result<Appended, AppendError> {
        match self {
            Self::Appended(appended) => Ok(appended),
            Self::Refused(error) => Err(error),
            Self::Unknown => Err(AppendError::Unknown),
            Self::UnknownSchemas(_) => Err(AppendError::Storage),
        }
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.u8(VERSION);
        match self {
            Self::Appended(appended) => {
                to.u8(0);
                to.u32(appended.partition.0);
                to.u8(u8::from(appended.range.is_some()));
                if let Some(range) = &appended.range {
                    to.u64(range.from().0);
                    to.u64(range.to().0);
                }
                to.len(appended.deduplicated.len());
                appended.deduplicated.iter().for_each(|index| to.u32(*index));
            }
            Self::Refused(error) => {
                to.u8(1);
                let after = match error {
                    AppendError::Full { retry_after }
                    | AppendError::Lane { retry_after }
                    | AppendError::Memory { retry_after }
                    | AppendError::Unreachable { retry_after } => *retry_after,
                    AppendError::Storage | AppendError::Draining | AppendError::Unknown => {
                        Duration::ZERO
                    }
                };
                put_shed(&mut to, error.reason(), after);
            }
            Self::Unknown => to.u8(2),
            Self::UnknownSchemas(hashes) => {
                to.u8(3);
                to.len(hashes.len());
                hashes.iter().for_each(|hash| to.raw(hash));
            }
        }
        to.0
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader(bytes);
        if from.u8()? != VERSION {
            return Err(Malformed("unknown version"));
        }
        let outcome = match from.u8()? {
            0 => Self::Appended(appended(&mut from)?),
            1 => {
                let (reason, retry_after) = shed(&mut from)?;
                Self::Refused(refused(reason, retry_after)?)
            }
            2 => Self::Unknown,
            3 => {
                let count = from.count(16)?;
                let hashes: Result<Vec<_>, _> = (0..count).map(|_| from.array()).collect();
                Self::UnknownSchemas(hashes?)
            }
            _ => return Err(Malformed("unknown kind")),
        };
        from.end()?;
        Ok(outcome)
    }
}

fn appended(from: &mut Reader<'_>) -> Result<Appended, Malformed> {
    let partition = Partition(from.u32()?);
    let range = match from.flag()? {
        false => None,
        true => {
            let (first, end) = (Offset(from.u64()?), Offset(from.u64()?));
            Some(OffsetRange::new(first, end).ok_or(Malformed("no range of offsets"))?)
        }
    };
    let count = from.count(4)?;
    let deduplicated: Result<Vec<_>, _> = (0..count).map(|_| from.u32()).collect();
    Ok(Appended { partition, range, deduplicated: deduplicated? })
}

fn refused(reason: ShedReason, retry_after: Duration) -> Result<AppendError, Malformed> {
    Ok(match reason {
        ShedReason::LogFull => AppendError::Full { retry_after },
        ShedReason::TenantLane => AppendError::Lane { retry_after },
        ShedReason::EdgeFull => AppendError::Memory { retry_after },
        ShedReason::Unreachable => AppendError::Unreachable { retry_after },
        ShedReason::Storage => AppendError::Storage,
        ShedReason::Draining => AppendError::Draining,
        ShedReason::QuotaEvents | ShedReason::QuotaBytes | ShedReason::OutcomeUnknown => {
            return Err(Malformed("no reason of a log's"));
        }
    })
}

/// A schema's content, before a batch uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaContent {
    /// The tenant it is for alone.
    pub tenant: Option<TenantId>,
    /// Its event type.
    pub event_type: EventType,
    /// Its canonical text.
    pub text: String,
}

impl SchemaContent {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.u8(VERSION);
        to.optional(self.tenant.as_ref().map(TenantId::as_str));
        to.text(self.event_type.as_str());
        to.text(&self.text);
        to.0
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader(bytes);
        if from.u8()? != VERSION {
            return Err(Malformed("unknown version"));
        }
        let tenant = from.optional()?.map(TenantId::new).transpose();
        let tenant = tenant.map_err(|_| Malformed("no tenant's name"))?;
        let event_type = EventType::new(from.text()?);
        let event_type = event_type.map_err(|_| Malformed("no event type's name"))?;
        let text = from.text()?.to_owned();
        from.end()?;
        Ok(Self { tenant, event_type, text })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome() -> impl Strategy<Value = Outcome> {
        let range = prop::option::of((0..u64::MAX / 2, 1..1000u64));
        let known = prop::collection::vec(any::<u32>(), 0..9);
        let appended = (any::<u32>(), range, known).prop_map(|(partition, range, deduplicated)| {
            let range = range.map(|(at, n)| OffsetRange::new(Offset(at), Offset(at + n)).unwrap());
            Outcome::Appended(Appended { partition: Partition(partition), range, deduplicated })
        });
        let refused = (0..6, any::<u32>()).prop_map(|(which, ms)| {
            let retry_after = Duration::from_millis(ms.into());
            Outcome::Refused(match which {
                0 => AppendError::Full { retry_after },
                1 => AppendError::Lane { retry_after },
                2 => AppendError::Memory { retry_after },
                3 => AppendError::Unreachable { retry_after },
                4 => AppendError::Storage,
                _ => AppendError::Draining,
            })
        });
        let hashes = prop::collection::vec(any::<[u8; 16]>(), 0..4);
        prop_oneof![
            appended,
            refused,
            Just(Outcome::Unknown),
            hashes.prop_map(Outcome::UnknownSchemas)
        ]
    }

    proptest! {
        #[test]
        fn an_outcome_reads_back_as_it_was_written(outcome in outcome()) {
            prop_assert_eq!(Outcome::decode(&outcome.encode()).unwrap(), outcome);
        }

        #[test]
        fn a_schema_reads_back_as_it_was_written(
            tenant in prop::option::of("[a-z]{1,9}"), name in "[a-z]{1,9}", text in ".{0,80}",
        ) {
            let tenant = tenant.map(|tenant| TenantId::new(&tenant).unwrap());
            let schema = SchemaContent { tenant, event_type: EventType::new(&name).unwrap(), text };
            prop_assert_eq!(SchemaContent::decode(&schema.encode()).unwrap(), schema);
        }

        #[test]
        fn what_is_cut_is_none_and_what_is_flipped_never_panics(
            outcome in outcome(), at in any::<prop::sample::Index>(), bit in 0..8u32,
        ) {
            let mut bytes = outcome.encode();
            let at = at.index(bytes.len());
            prop_assert!(Outcome::decode(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            let _ = (Outcome::decode(&bytes), SchemaContent::decode(&bytes));
        }
    }
}
