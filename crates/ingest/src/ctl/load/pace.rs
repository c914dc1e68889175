//! Says when requests are due, on a thread of its own: a runtime's timer counts whole milliseconds,
//! which would show in every latency.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::worker::Plan;

/// Requests that are due within this time are let go together, to be woken up less often.
const TICK: Duration = Duration::from_micros(200);

/// Lets requests go as they become due, until the run is over.
pub fn pace(plan: &Plan) {
    let mut number = 0;
    while number < plan.requests && !plan.is_over() {
        let Some(due) = plan.due_at(number) else { return };
        let now = Instant::now();
        if now < due {
            // In steps, so that the end of the run is not slept over.
            thread::sleep((due - now).clamp(TICK, Duration::from_millis(100)));
            continue;
        }
        let mut ready = 1;
        while number + ready < plan.requests
            && ready < 10_000
            && plan.due_at(number + ready).is_some_and(|due| due <= now)
        {
            ready += 1;
        }
        plan.due.add_permits(usize::try_from(ready).unwrap_or(1));
        number += ready;
    }
    if plan.is_over() {
        plan.finish();
    } else {
        // Every request was let go: each worker is woken once more, to see that there is no other.
        plan.due.add_permits(usize::from(u16::MAX));
    }
}
