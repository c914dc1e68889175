//! What a lane's data stream is called, by Elasticsearch's rules: lower case, and not too long.

use sha2::{Digest, Sha256};

use super::super::{Lane, names::Template};

/// A stream's indices have its name and up to 22 bytes more, and no index has more than 255.
const NAME_BYTES_MAX: usize = 230;
/// In front of a letter that is a capital in the event type's name, where no type has it.
const CAPITAL: char = '~';

/// The data stream of `lane`. Two lanes never share one, unless the template leaves out the tenant.
pub fn stream(template: &Template, lane: &Lane) -> String {
    let name = template.name(lane, |event_type| {
        let mut name = String::with_capacity(event_type.len());
        for c in event_type.chars() {
            if c.is_ascii_uppercase() {
                name.push(CAPITAL);
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    });
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    // Twice the sign never stands in a name that is not cut.
    let hash = Sha256::digest(name.as_bytes());
    let hash = hex::encode(hash.get(..16).unwrap_or_default());
    let kept: String = name.chars().take(NAME_BYTES_MAX - hash.len() - 2).collect();
    format!("{kept}{CAPITAL}{CAPITAL}{hash}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidegate_event::{EventType, TenantId};

    fn name(tenant: &str, event_type: &str, dead: bool) -> String {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let template = Template::parse("tidegate-{tenant}.{event_type}", legal).unwrap();
        let (tenant, event_type) = (TenantId::new(tenant), EventType::new(event_type));
        let lane = Lane { tenant: tenant.unwrap(), event_type: event_type.unwrap(), dead };
        stream(&template, &lane)
    }

    #[test]
    fn names_are_lower_case_and_fit() {
        assert_eq!(name("acme", "page_view", false), "tidegate-acme.page_view");
        assert_eq!(name("acme", "PageView", false), "tidegate-acme.~page~view");
        assert_eq!(name("acme", "PageView", true), "tidegate-acme._dead_letters");
        let long = |tail: &str| name(&"t".repeat(63), &format!("{}{tail}", "A".repeat(126)), false);
        assert_eq!((long("A").len(), long("a").len()), (NAME_BYTES_MAX, NAME_BYTES_MAX));
        assert_ne!(long("A"), long("a"));
    }

    proptest! {
        #[test]
        fn two_types_never_share_a_stream(
            a in "[a-zA-Z][A-Za-z0-9._-]{0,126}", b in "[abAB][aA._-]{0,4}", c in "[abAB][aA._-]{0,4}"
        ) {
            for event_type in [&a, &b, &c] {
                prop_assume!(!event_type.contains(".."));
                let name = name("acme", event_type, false);
                prop_assert!(name.len() <= NAME_BYTES_MAX);
                let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-~".contains(c);
                prop_assert!(name.chars().all(legal), "{}", name);
            }
            prop_assert_eq!(name("acme", &b, false) == name("acme", &c, false), b == c);
        }
    }
}
