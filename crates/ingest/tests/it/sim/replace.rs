//! `storage::replace`: the old content or the new, whatever happens, and the new once it returned.

use std::path::Path;

use tidegate_ingest::storage::{self, Storage};

use super::{
    dice::Dice,
    fs::{Odds, SimFs},
    seeds,
};

fn run(seed: u64) -> u64 {
    let (fs, mut dice) = (SimFs::new(seed), Dice::new(!seed));
    let (dir, path) = (Path::new("/data"), Path::new("/data/state.json"));
    fs.process().create_dir_all(dir).unwrap();
    // What it may hold: one after a success, more after failures.
    let mut possible: Vec<Option<Vec<u8>>> = vec![None];
    for _ in 0..30 {
        if dice.coin() {
            fs.set_odds(Odds {
                short_write: 300,
                write_error: 80,
                sync_error: 80,
                capacity: dice.coin().then(|| dice.below(20_000)),
                ..Odds::default()
            });
        }
        if dice.coin() {
            fs.crash_in(1 + dice.below(10), false);
        }
        for _ in 0..=dice.below(2) {
            let len = dice.index(6_000);
            let bytes = dice.bytes(len);
            match storage::replace(&fs.process(), path, &bytes) {
                Ok(()) => possible = vec![Some(bytes)],
                Err(_) => possible.push(Some(bytes)),
            }
        }
        if dice.permille(300) {
            fs.kill()
        } else {
            fs.reboot()
        }
        let found = fs.process().read(path).ok();
        assert!(possible.contains(&found), "neither the old content nor the new");
    }
    fs.operations()
}

#[test]
fn a_replaced_file_is_the_old_one_or_the_new_one() {
    seeds("replace", &["P1", "P5", "P7"], 400, run);
}
