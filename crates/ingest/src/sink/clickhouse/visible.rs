//! Which rows can be read: one point look-up for each, by the table's whole key, in one statement.

use std::fmt::Write as _;

use super::{super::freshness::Mark, block::literal, config::Settings};

/// Asks for the places (from 0) of those marks whose row can be read, one a line.
pub fn question(settings: &Settings, marks: &[Mark]) -> String {
    let mut text = String::new();
    for (place, mark) in marks.iter().enumerate() {
        let table = settings.table(&mark.lane).quoted();
        let tenant = literal(mark.lane.tenant.as_str());
        let (time, log_id) = (mark.event_time.0, literal(&mark.log_id));
        let (partition, offset) = (mark.partition.0, mark.offset.0);
        if 0 < place {
            text.push_str(" UNION ALL ");
        }
        let _ = write!(
            text,
            "(SELECT toUInt32({place}) AS place FROM {table} WHERE tenant = {tenant} AND \
             event_time = fromUnixTimestamp64Micro(toInt64({time}), 'UTC') AND \
             log_partition = {partition} AND log_offset = {offset} AND log_id = {log_id} LIMIT 1)"
        );
    }
    text.push_str(" FORMAT TabSeparated");
    text
}

/// What the answer says of each of `count` marks; `None` where it is no answer to the question.
pub fn answer(bytes: &[u8], count: usize) -> Option<Vec<bool>> {
    let mut visible = vec![false; count];
    for line in std::str::from_utf8(bytes).ok()?.lines() {
        *visible.get_mut(line.parse::<usize>().ok()?)? = true;
    }
    Some(visible)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sink::Lane;
    use tidegate_event::{EventTime, EventType, Offset, Partition, TenantId};

    #[test]
    fn each_mark_is_looked_up_by_its_whole_key() {
        let mark = |dead| Mark {
            lane: Lane {
                tenant: TenantId::new("acme").unwrap(),
                event_type: EventType::new("view").unwrap(),
                dead,
            },
            log_id: "abcd1234".into(),
            partition: Partition(2),
            offset: Offset(7),
            event_time: EventTime(5),
        };
        let config = "name='c'\nkind='clickhouse'\nurl='http://h:1'";
        let settings = Settings::read(&toml::from_str(config).unwrap()).unwrap();
        let text = question(&settings, &[mark(false), mark(true)]);
        assert_eq!(
            text,
            "(SELECT toUInt32(0) AS place FROM `tidegate`.`view` WHERE tenant = 'acme' AND event_time = \
             fromUnixTimestamp64Micro(toInt64(5), 'UTC') AND log_partition = 2 AND log_offset = 7 AND \
             log_id = 'abcd1234' LIMIT 1) UNION ALL (SELECT toUInt32(1) AS place FROM \
             `tidegate`.`_dead_letters` WHERE tenant = 'acme' AND event_time = \
             fromUnixTimestamp64Micro(toInt64(5), 'UTC') AND log_partition = 2 AND log_offset = 7 AND \
             log_id = 'abcd1234' LIMIT 1) FORMAT TabSeparated"
        );
        assert_eq!(answer(b"1\n", 2), Some(vec![false, true]));
        assert_eq!(answer(b"", 1), Some(vec![false]));
        assert_eq!(answer(b"2\n", 2), None);
        assert_eq!(answer(b"<html>", 1), None);
    }
}
