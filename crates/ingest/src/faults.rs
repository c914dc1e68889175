//! Where tests end the process at a named place, or plant a bug to see who catches it.
//!
//! Only with the feature `faults`, which no release has: otherwise [`at`] does nothing and
//! [`planted`] is a constant `false`, so that the compiler removes both.
//!
//! ```text
//! TIDEGATE_KILL_AT=K9:3 ingestd-faults …           SIGKILL when K9 is reached the third time
//! TIDEGATE_PLANT=ack_before_sync cargo test …      one line of the product is wrong
//! ```

/// A closed list of names, with what each means.
macro_rules! names {
    ($(#[$doc:meta])* $kind:ident { $($variant:ident = $name:literal, $what:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "`ALL` says what each means")]
        pub enum $kind { $($variant),+ }

        impl $kind {
            /// Each with its name, and what it means.
            pub const ALL: &[(Self, &str, &str)] = &[$((Self::$variant, $name, $what)),+];

            /// The one of this name.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(one, _, _)| *one)
            }
        }
    };
}

names! {
    /// A place on the way of an event from the socket to the lake. The numbers have gaps: what lies
    /// outside of the process (half a head, half a body, half an answer) is cut from outside.
    Point {
        BodyRead = "K3", "body read, not decoded";
        Decoded = "K4", "decoded and judged, not queued";
        InGroup = "K5", "in the group, nothing written";
        ShortWrite = "K6", "half of the group written";
        Written = "K7", "written, not synced";
        InSync = "K8", "inside of fdatasync";
        Synced = "K9", "synced, not visible to readers";
        BeforeAnswer = "K10", "durable, not answered";
        SegmentCreated = "K12", "new segment written, its name not synced";
        SegmentNamed = "K13", "new segment durable, nothing in it";
        SegmentHead = "K14", "half of a segment's head written";
        Retention = "K15", "segment removed, its folder not synced";
        WindowCut = "K16", "a sink has cut a window, no intent";
        IntentDurable = "K17", "the intent is durable, nothing written";
        HalfDelivered = "K18", "some of a window's files are there";
        FileNamed = "K19", "a file has its name for good, its writer does not know";
        Delivered = "K20", "all files are there, the cursor is not";
        StateWritten = "K21a", "a small file's new content written, not synced";
        StateSynced = "K21b", "a small file's new content synced, not renamed";
        StateRenamed = "K21c", "a small file renamed, its folder not synced";
        HalfFile = "K22", "half of a lake's file is in `staging/`";
        FileStaged = "K23", "a lake's file is in `staging/`, whole and synced, not linked";
        Orphan = "K25", "a file in `staging/` that nobody needs any more";
    }
}

names! {
    /// A line of the product that is wrong on purpose.
    Bug {
        AckBeforeSync = "ack_before_sync", "a group is acknowledged before its fdatasync";
        SyncRetried = "sync_retried", "a failed fdatasync is tried again, and believed";
        SegmentNameNotSynced = "segment_name_not_synced", "a new segment's folder is not synced";
        SmallFileNotSynced = "small_file_not_synced", "a small file is renamed into place unsynced";
        CacheTrusted = "cache_trusted", "a start believes the page cache after a crash";
        DamageIsTail = "damage_is_tail", "a start cuts the log at its first damage";
        DamageNotTold = "damage_not_told", "a reader passes over damage without a word";
        ChecksumsNotChained = "checksums_not_chained", "a frame does not prove the one before it";
        RetentionIgnoresHolds = "retention_ignores_holds", "retention removes what a sink needs";
        CursorBeforeWrite = "cursor_before_write", "a sink's cursor moves before its files are there";
        IntentNotDurable = "intent_not_durable", "a sink writes before its intent is durable";
        IntentHashIgnored = "intent_hash_ignored", "a window is written again whatever it holds now";
        WindowRecut = "window_recut", "after a crash a window is cut anew";
        HoldBeforeCursor = "hold_before_cursor", "a sink lets go of the log before its cursor is durable";
        NameByAttempt = "name_by_attempt", "a retry writes under another name";
        HourByClock = "hour_by_clock", "a lake's folder is that of the time of writing";
        LakeOverwrites = "lake_overwrites", "a lake's file replaces what has its name";
        QueueByCount = "queue_by_count", "the writer's queue is bounded in requests, not bytes";
        TwinOfTheLost = "twin_of_the_lost", "an id is remembered although its append failed";
        IdsForgotten = "ids_forgotten", "a start forgets the ids it had seen";
        LedgerAhead = "ledger_ahead", "the ledger claims to have counted what it has not";
        OutcomeForgotten = "outcome_forgotten", "a rejected event gets no outcome";
        KeyAfterBody = "key_after_body", "the key is checked once the body is read";
        TenantFromHeader = "tenant_from_header", "X-Tenant names the tenant";
        TypeOfKeyIgnored = "type_of_key_ignored", "a key may send any type";
        GzipFirstMember = "gzip_first_member", "only the first member of a gzip body is read";
        BombsDecoded = "bombs_decoded", "a body is decoded without a bound";
        LastKeyWins = "last_key_wins", "of two equal keys the last one counts";
        PayloadLogged = "payload_logged", "a dead letter's content goes to the server's log";
        NoRetryAfter = "no_retry_after", "shed without Retry-After";
        QuotaByWallClock = "quota_by_wall_clock", "a quota goes by the wall clock";
        ReloadHalf = "reload_half", "a refused reload leaves half of it live";
    }
}

/// True where a test has planted this bug.
#[inline]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    #[cfg(feature = "faults")]
    return armed::planted(bug);
    #[cfg(not(feature = "faults"))]
    {
        let _ = bug;
        false
    }
}

/// A number that is another one each time: for bugs that make a name differ.
#[inline]
#[must_use]
pub fn attempt() -> u64 {
    #[cfg(feature = "faults")]
    return armed::attempt();
    #[cfg(not(feature = "faults"))]
    0
}

/// Microseconds since 1970 by the machine's clock: for bugs that ask it.
#[inline]
#[must_use]
pub fn wall_clock() -> i64 {
    #[cfg(feature = "faults")]
    return armed::wall_clock();
    #[cfg(not(feature = "faults"))]
    0
}

/// Reached a place: the end of the process, where a test says so.
#[inline]
pub fn at(point: Point) {
    #[cfg(feature = "faults")]
    armed::at(point);
    #[cfg(not(feature = "faults"))]
    let _ = point;
}

/// True where a test has this place armed and its turn has come: the caller does half of its work
/// before it calls [`at`]'s other half, [`die`].
#[inline]
#[must_use]
pub fn due(point: Point) -> bool {
    #[cfg(feature = "faults")]
    return armed::due(point);
    #[cfg(not(feature = "faults"))]
    {
        let _ = point;
        false
    }
}

/// Ends the process as `kill -9` does; nothing is flushed, nothing unwinds.
#[inline]
pub fn die() {
    #[cfg(feature = "faults")]
    armed::die();
}

/// Ends the process within the next moments, while the caller is inside of a system call.
#[inline]
pub fn die_soon(point: Point) {
    #[cfg(feature = "faults")]
    armed::die_soon(point);
    #[cfg(not(feature = "faults"))]
    let _ = point;
}

#[cfg(feature = "faults")]
mod armed {
    use std::{
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use super::{Bug, Point};
    use crate::clock::{Clock, SystemClock};

    static PLANTED: LazyLock<Option<Bug>> = LazyLock::new(|| {
        let name = std::env::var("TIDEGATE_PLANT").ok()?;
        let known = Bug::named(&name);
        if known.is_none() {
            tracing::error!(name, "TIDEGATE_PLANT names no bug");
            std::process::exit(2);
        }
        known
    });

    static ATTEMPTS: AtomicU64 = AtomicU64::new(1);

    pub(super) fn planted(bug: Bug) -> bool {
        *PLANTED == Some(bug)
    }

    pub(super) fn attempt() -> u64 {
        ATTEMPTS.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn wall_clock() -> i64 {
        SystemClock.now().0
    }

    /// The place, and how often it is passed before.
    static ARMED: LazyLock<Option<(Point, AtomicU64)>> = LazyLock::new(|| {
        let text = std::env::var("TIDEGATE_KILL_AT").ok()?;
        let (name, turn) = text.split_once(':').unwrap_or((&text, "1"));
        let known = Point::named(name).zip(turn.parse::<u64>().ok().filter(|turn| *turn > 0));
        let Some((point, turn)) = known else {
            tracing::error!(text, "TIDEGATE_KILL_AT names no place; it is `K9` or `K9:3`");
            std::process::exit(2);
        };
        Some((point, AtomicU64::new(turn)))
    });

    pub(super) fn due(point: Point) -> bool {
        let Some((_, left)) = ARMED.as_ref().filter(|(armed, _)| *armed == point) else {
            return false;
        };
        left.fetch_sub(1, Ordering::Relaxed) == 1
    }

    pub(super) fn at(point: Point) {
        if due(point) {
            die();
        }
    }

    pub(super) fn die() {
        let own = rustix::process::getpid();
        if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::KILL) {
            tracing::error!(%error, "the process could not be killed");
        }
        std::process::abort();
    }

    pub(super) fn die_soon(point: Point) {
        if due(point) {
            let spread = u64::from(std::process::id()) % 8 * 25;
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(spread));
                die();
            });
        }
    }
}
