//! Names of streams and topics by a template such as `{tenant}.{event_type}`: two lanes never share one by chance.
//!
//! A tenant's name has no `.`, so what stands between the two placeholders begins with one: read from
//! the left a name says which tenant and which type it is made of. Dead letters go under the type
//! `_dead_letters`, which no event has, since types begin with a letter.

use super::Lane;

/// In the place of the type, for dead letters of all types.
pub const DEAD_LETTERS: &str = "_dead_letters";
/// The longest tenant's name and the longest event type.
const TENANT_BYTES_MAX: usize = 63;
const TYPE_BYTES_MAX: usize = 127;

/// Makes a name from a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    before: String,
    /// What stands between tenant and type; `None`: tenants share a type's name.
    between: Option<String>,
    after: String,
}

impl Template {
    /// Reads a template whose own characters are all `legal`.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub fn parse(text: &str, legal: fn(char) -> bool) -> Result<Self, String> {
        const TYPE: &str = "{event_type}";
        const TENANT: &str = "{tenant}";
        let (head, after) = text
            .split_once(TYPE)
            .ok_or_else(|| format!("{text:?} has no {TYPE}: every type needs a name of its own"))?;
        let (before, between) = match head.split_once(TENANT) {
            Some((before, between)) => (before, Some(between.to_owned())),
            None => (head, None),
        };
        if between.as_ref().is_some_and(|between| !between.starts_with('.')) {
            return Err(format!(
                "{text:?}: two lanes could have one name; write \"{TENANT}.{TYPE}\", with '.' \
                 first between the two"
            ));
        }
        for part in [before, between.as_deref().unwrap_or_default(), after] {
            if let Some(c) = part.chars().find(|c| !legal(*c)) {
                return Err(format!(
                    "{text:?}: {c:?} may not stand there; {TENANT} may stand once, before {TYPE}, \
                     which stands once"
                ));
            }
        }
        Ok(Self { before: before.to_owned(), between, after: after.to_owned() })
    }

    /// What every name begins with.
    pub fn prefix(&self) -> &str {
        &self.before
    }

    /// The longest name there can be, where a type's name is taken as it is.
    pub fn bytes_max(&self) -> usize {
        let between = self.between.as_ref().map_or(0, |text| TENANT_BYTES_MAX + text.len());
        self.before.len() + between + TYPE_BYTES_MAX + self.after.len()
    }

    /// The lane's name, its type written by `encode`, which must keep types apart.
    pub fn name(&self, lane: &Lane, encode: impl Fn(&str) -> String) -> String {
        let mut name = self.before.clone();
        if let Some(between) = &self.between {
            name.push_str(lane.tenant.as_str());
            name.push_str(between);
        }
        if lane.dead {
            name.push_str(DEAD_LETTERS);
        } else {
            name.push_str(&encode(lane.event_type.as_str()));
        }
        name.push_str(&self.after);
        name
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidegate_event::{EventType, TenantId};

    fn legal(c: char) -> bool {
        c.is_ascii_alphanumeric() || "._-".contains(c)
    }

    fn lane(tenant: &str, event_type: &str, dead: bool) -> Lane {
        let (tenant, event_type) = (TenantId::new(tenant), EventType::new(event_type));
        Lane { tenant: tenant.unwrap(), event_type: event_type.unwrap(), dead }
    }

    proptest! {
        #[test]
        fn two_lanes_never_share_a_name(
            a in "[a-c][a_-]{0,3}", b in "[a-c][a_-]{0,3}",
            x in "[a-cA][a._-]{0,4}", y in "[a-cA][a._-]{0,4}", which in 0usize..4,
        ) {
            prop_assume!(!x.contains("..") && !y.contains(".."));
            let template = ["{tenant}.{event_type}", "t-{tenant}.a.{event_type}-x",
                "{tenant}.-{event_type}.a", "-{tenant}._{event_type}"][which];
            let template = Template::parse(template, legal).unwrap();
            let name = |tenant: &str, event_type: &str, dead| {
                template.name(&lane(tenant, event_type, dead), str::to_owned)
            };
            prop_assert_eq!(name(&a, &x, false) == name(&b, &y, false), (&a, &x) == (&b, &y));
            prop_assert_ne!(name(&a, &x, false), name(&b, &y, true));
            prop_assert!(name(&a, &x, false).len() <= template.bytes_max());
        }
    }

    #[test]
    fn a_template_that_could_mix_lanes_is_refused() {
        for (text, why) in [
            ("events", "has no {event_type}"),
            ("{tenant}-{event_type}", "two lanes could have one name"),
            ("{tenant}{event_type}", "two lanes could have one name"),
            ("{event_type}.{tenant}", "may not stand there"),
            ("{tenant}.{event_type}.{event_type}", "may not stand there"),
            ("a b.{event_type}", "' ' may not stand there"),
            ("{tenants}.{event_type}", "may not stand there"),
        ] {
            let fault = Template::parse(text, legal).unwrap_err();
            assert!(fault.contains(why), "{text}: {fault}");
        }
        let all = Template::parse("all.{event_type}", legal).unwrap();
        assert_eq!(all.name(&lane("a", "V", false), str::to_owned), "all.V");
        assert_eq!(all.name(&lane("a", "V", true), str::to_owned), "all._dead_letters");
        assert_eq!(all.prefix(), "all.");
    }
}
