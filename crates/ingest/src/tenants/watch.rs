//! Follows the folder of tenant files: a change is live within about a second.

use std::{sync::Arc, time::Duration};

use super::Tenants;

const EVERY: Duration = Duration::from_secs(1);

impl Tenants {
    /// Looks at the files every second, for ever. A file that cannot be read keeps its tenant as it
    /// was, and is warned about once until it changes again. Needs a tokio runtime.
    pub async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let tenants = Arc::clone(&self);
            let Err(error) = tokio::task::spawn_blocking(move || tenants.follow()).await else {
                continue;
            };
            tracing::error!(%error, "the folder of tenants could not be looked at");
        }
    }
}
