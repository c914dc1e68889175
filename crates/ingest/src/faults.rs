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

    use super::Point;

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
