//! Freshness as metrics: a histogram and a gauge for each lane.

use std::collections::BTreeMap;

use prometheus::proto::{Bucket, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::{
    super::rows::Lane,
    Freshness, LaneAges,
    ages::{BOUNDS, Total},
};

/// Series of one sink that are exported one by one: those with most events. The others together.
const SERIES_MAX: usize = 1_000;

/// What may be said of a lane: what clients make up must not make series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its tenant is configured.
    pub tenant: bool,
    /// Its event type has a schema.
    pub event_type: bool,
}

/// Tenant, event type, dead letters; nothing where it may not be said.
type Labels<'a> = (&'a str, &'a str, bool);

/// What is exported of all sinks.
#[derive(Debug, Default)]
pub struct Families {
    ages: Vec<Metric>,
    last: Vec<Metric>,
}

fn pairs(sink: &str, (tenant, event_type, dead): Labels<'_>) -> Vec<LabelPair> {
    let dead = if dead { "1" } else { "0" };
    let pairs =
        [("sink", sink), ("tenant", tenant), ("event_type", event_type), ("dead_letters", dead)];
    let pair = |(name, value): (&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    pairs.map(pair).into()
}

fn histogram(total: &Total) -> Histogram {
    let mut sum = 0;
    let bucket = |(bound, events): (f64, u64)| {
        sum += events;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(sum);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(BOUNDS.into_iter().zip(total.buckets).map(bucket).collect());
    histogram.set_sample_count(total.events);
    histogram.set_sample_sum(total.sum);
    histogram
}

impl Families {
    fn add(&mut self, sink: &str, labels: Labels<'_>, own: &LaneAges) {
        let mut ages = Metric::from_label(pairs(sink, labels));
        ages.set_histogram(histogram(&own.total));
        self.ages.push(ages);
        let mut gauge = Gauge::default();
        gauge.set_value(own.last);
        let mut last = Metric::from_label(pairs(sink, labels));
        last.set_gauge(gauge);
        self.last.push(last);
    }

    /// As the registry gives its own.
    pub fn finish(self) -> Vec<MetricFamily> {
        let family = |name: &str, help: &str, kind, metrics| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family.set_metric(metrics);
            family
        };
        let all = [
            family(
                "tidegate_sink_event_age_seconds",
                "From received to visible, each event, by sink, tenant and type.",
                MetricType::HISTOGRAM,
                self.ages,
            ),
            family(
                "tidegate_sink_lane_age_seconds",
                "From received to visible, the oldest event of a lane's last window.",
                MetricType::GAUGE,
                self.last,
            ),
        ];
        all.into_iter().filter(|family| !family.get_metric().is_empty()).collect()
    }
}

fn sum(into: &mut LaneAges, own: &LaneAges) {
    into.total.merge(&own.total);
    into.last = into.last.max(own.last);
}

impl Freshness {
    /// Adds this sink's lanes, those that may not be named, or are too many, together.
    pub fn export(&self, sink: &str, named: &dyn Fn(&Lane) -> Named, to: &mut Families) {
        let ages = self.ages();
        let mut series: BTreeMap<Labels<'_>, LaneAges> = BTreeMap::new();
        let mut add = |labels, own: &LaneAges| sum(series.entry(labels).or_default(), own);
        for (lane, own) in &ages.lanes {
            let Named { tenant, event_type } = named(lane);
            let tenant_label = if tenant { lane.tenant.as_str() } else { "" };
            let type_label = if tenant && event_type { lane.event_type.as_str() } else { "" };
            add((tenant_label, type_label, lane.dead), own);
        }
        if 0 < ages.others.total.events {
            add(("", "", false), &ages.others);
        }
        let mut ranked: Vec<_> = series.into_iter().collect();
        ranked.sort_by_key(|(_, own)| std::cmp::Reverse(own.total.events));
        let beyond = ranked.split_off(ranked.len().min(SERIES_MAX));
        let mut series: BTreeMap<_, _> = ranked.into_iter().collect();
        for (_, own) in beyond {
            sum(series.entry(("", "", false)).or_default(), &own);
        }
        for (labels, own) in &series {
            to.add(sink, *labels, own);
        }
    }
}
