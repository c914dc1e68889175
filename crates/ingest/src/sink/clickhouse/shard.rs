//! Which shard has which tenant: the one whose address, hashed with the tenant's name, comes out highest (rendezvous
//! hashing, Thaler and Ravishankar 1996). So with one more shard only what moves to it moves.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// The place of the tenant's shard among `shards`; `None` where there is none.
pub fn of<'a>(tenant: &str, shards: impl Iterator<Item = &'a str>) -> Option<usize> {
    let weight = |shard: &str| {
        // Keys of its own: it must say the same for ever.
        let mut hasher = SipHasher13::new_with_keys(0x7469_6465, 0x6761_7465);
        hasher.write(shard.trim_end_matches('/').as_bytes());
        hasher.write_u8(0);
        hasher.write(tenant.as_bytes());
        hasher.finish()
    };
    shards.enumerate().max_by_key(|(_, shard)| weight(shard)).map(|(at, _)| at)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    const SHARDS: [&str; 4] =
        ["http://a:8123/", "http://b:8123/", "http://c:8123/", "http://d:8123/"];

    fn homes(shards: &[&str]) -> Vec<String> {
        let tenants = (0..1_000).map(|number| format!("tenant-{number}"));
        let home = |tenant: String| of(&tenant, shards.iter().copied()).map(|at| shards[at]);
        tenants.map(|tenant| home(tenant).unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn each_shard_has_its_part_whatever_their_order() {
        let (homes_of, mut turned) = (homes(&SHARDS), SHARDS);
        for shard in SHARDS {
            let tenants = homes_of.iter().filter(|home| *home == shard).count();
            assert!((150..350).contains(&tenants), "{shard} has {tenants} of 1,000");
        }
        turned.reverse();
        assert_eq!(homes(&turned), homes_of);
    }

    #[test]
    fn one_more_shard_takes_tenants_and_moves_no_others() {
        let (before, after) = (homes(&SHARDS[..3]), homes(&SHARDS));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).collect();
        assert!(moved.iter().all(|(_, home)| *home == SHARDS[3]));
        assert!((150..350).contains(&moved.len()), "{} moved", moved.len());
    }

    #[test]
    fn a_tenants_shard_is_the_same_in_every_version() {
        let shards = || SHARDS.iter().copied();
        let homes = ["acme", "globex", "initech", "umbrella"].map(|tenant| of(tenant, shards()));
        assert_eq!(homes, [Some(0), Some(3), Some(1), Some(3)]);
        assert_eq!(of("acme", [].into_iter()), None);
    }
}
