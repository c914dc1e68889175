//! The control log: what was recorded is there after any crash, in order, whatever the disk did to others.

use std::{path::Path, sync::Arc};

use serde_json::json;
use tidegate_event::ReceivedAt;
use tidegate_ingest::{
    control::{Action, Control},
    storage::Storage,
};

use super::{
    dice::Dice,
    fs::{Odds, SimFs},
    seeds,
};

fn action(n: i64, dice: &mut Dice) -> Action {
    Action {
        at: ReceivedAt(super::MORNING + n),
        by: "ann".to_owned(),
        action: "mark".to_owned(),
        plan_id: None,
        details: json!({ "n": n, "pad": "x".repeat(dice.index(3_000)) }),
    }
}

fn run(seed: u64) -> u64 {
    let (fs, mut dice) = (SimFs::new(seed), Dice::new(!seed));
    let dir = Path::new("/data");
    fs.process().create_dir_all(dir).unwrap();
    let (mut recorded, mut doubtful, mut next) = (Vec::new(), Vec::new(), 0);
    for _ in 0..20 {
        if dice.coin() {
            fs.set_odds(Odds {
                short_write: 300,
                write_error: 80,
                sync_error: 80,
                capacity: dice.coin().then(|| dice.below(40_000)),
                ..Odds::default()
            });
        }
        if dice.coin() {
            fs.crash_in(1 + dice.below(20), false);
        }
        let control = Control::open(Arc::new(fs.process()), dir);
        for _ in 0..=dice.below(5) {
            let action = action(next, &mut dice);
            next += 1;
            match control.record(&action) {
                Ok(()) => recorded.push(action),
                Err(_) => doubtful.push(action),
            }
        }
        if dice.permille(300) {
            fs.kill();
        } else {
            fs.reboot();
        }
        fs.set_odds(Odds::default());
        let found = Control::open(Arc::new(fs.process()), dir).read().unwrap();
        let known = |a: &&Action| recorded.contains(a) || doubtful.contains(a);
        assert!(found.actions.iter().all(|a| known(&a)), "nothing that nobody did");
        assert!(found.actions.is_sorted_by_key(|a| a.at), "in order, none twice");
        let kept: Vec<_> = found.actions.into_iter().filter(|a| recorded.contains(a)).collect();
        assert!(kept == recorded, "{} of {} are there", kept.len(), recorded.len());
        assert!(found.damaged.is_empty() || !doubtful.is_empty(), "{:?}", found.damaged);
    }
    fs.operations()
}

#[test]
fn what_was_recorded_is_there_after_any_crash() {
    seeds("control", &["P6"], 200, run);
}
