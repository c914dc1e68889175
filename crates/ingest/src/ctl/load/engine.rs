//! What runs a plan: its connections on threads of their own, beside the one that says when requests are due.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    pace,
    stats::{self, Stats},
    worker::{self, Plan, lock},
};
use crate::ctl::fault::Fault;

/// A plan under way; dropped, it ends.
#[derive(Debug)]
pub struct Running {
    plan: Arc<Plan>,
    stats: Vec<Arc<Mutex<Stats>>>,
    handles: Vec<JoinHandle<Result<(), Fault>>>,
}

impl Running {
    /// Starts `connections` connections on `threads` threads. `niceness`: by so many steps they give way
    /// to others on the same core, as whoever must not disturb what is measured beside it.
    ///
    /// # Errors
    /// [`Fault::Failed`]: never with the bounds of latencies as they are.
    pub fn start(
        plan: Arc<Plan>,
        connections: u16,
        threads: u16,
        niceness: i32,
    ) -> Result<Self, Fault> {
        let threads = threads.min(connections).max(1);
        let stats: Vec<_> = (0..threads)
            .map(|_| Ok(Arc::new(Mutex::new(Stats::new()?))))
            .collect::<Result<_, Fault>>()?;
        let mut handles = Vec::new();
        for (thread, counted) in (0..threads).zip(&stats) {
            let own = connections / threads + u16::from(thread < connections % threads);
            let (plan, counted) = (Arc::clone(&plan), Arc::clone(counted));
            handles.push(std::thread::spawn(move || {
                be_nice(niceness)?;
                connect_all(&plan, &counted, own)?;
                lock(&counted).starved = stats::starved().unwrap_or_default();
                Ok(())
            }));
        }
        if plan.interval.is_some() {
            let plan = Arc::clone(&plan);
            handles.push(std::thread::spawn(move || {
                be_nice(niceness)?;
                pace::pace(&plan);
                Ok(())
            }));
        }
        Ok(Self { plan, stats, handles })
    }

    /// What it runs.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it runs, to be looked at after the end.
    #[must_use]
    pub fn shared_plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan)
    }

    /// What each thread has counted so far.
    #[must_use]
    pub fn stats(&self) -> &[Arc<Mutex<Stats>>] {
        &self.stats
    }

    /// True once every connection has seen the end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handles.iter().all(JoinHandle::is_finished)
    }

    /// Ends it and adds up what the threads counted.
    ///
    /// # Errors
    /// [`Fault::Failed`] where a thread died.
    pub fn join(mut self) -> Result<Stats, Fault> {
        self.plan.finish();
        for handle in self.handles.drain(..) {
            let died =
                |_| Fault::failed("a thread of the load died", "this is a fault of ingestctl");
            handle.join().map_err(died)??;
        }
        let mut total = Stats::new()?;
        for stats in &self.stats {
            total.add(&lock(stats))?;
        }
        Ok(total)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.plan.finish();
    }
}

/// Lets this thread give way to others by so many steps.
///
/// # Errors
/// [`Fault::Failed`] where the system refuses that.
pub fn be_nice(steps: i32) -> Result<(), Fault> {
    if steps == 0 {
        return Ok(());
    }
    // Linux keeps this per thread; without an id it is the calling one's.
    rustix::process::getpriority_process(None)
        .and_then(|now| rustix::process::setpriority_process(None, (now + steps).min(19)))
        .map_err(|e| Fault::failed(format!("cannot lower a thread's priority: {e}"), ""))
}

/// A runtime on this thread alone.
///
/// # Errors
/// [`Fault::Failed`] where the system refuses that.
pub fn runtime() -> Result<Runtime, Fault> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fault::failed(format!("cannot start: {e}"), ""))
}

/// All connections of one thread, on a runtime of its own.
fn connect_all(plan: &Arc<Plan>, stats: &Arc<Mutex<Stats>>, count: u16) -> Result<(), Fault> {
    runtime()?.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            tasks.spawn(worker::work(Arc::clone(plan), Arc::clone(stats)));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(e) = ended {
                plan.fail(Fault::failed(format!("a connection's task died: {e}"), ""));
            }
        }
    });
    Ok(())
}

/// How many requests were due and never sent. Each is noted with the time it had waited when the
/// run ended, the least its latency could have been: leaving them out would flatter the server.
pub fn unsent(plan: &Plan, total: &mut Stats, elapsed: Duration) -> u64 {
    let Some(interval) = plan.interval else { return 0 };
    let end = plan.end.map_or(elapsed, |end| elapsed.min(end.duration_since(plan.start)));
    let due = end.as_nanos().div_ceil(interval.as_nanos().max(1));
    let due = u64::try_from(due).unwrap_or(u64::MAX).min(plan.requests);
    let taken = plan.next.load(Ordering::Relaxed);
    for number in taken..due {
        if let Some(at) = plan.due_at(number) {
            total.took((plan.start + end).saturating_duration_since(at), true);
        }
    }
    due.saturating_sub(taken)
}
