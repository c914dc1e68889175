//! Freshness as metrics: a histogram and a gauge for each lane.

use prometheus::proto::{Bucket, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use tidegate_event::TenantId;

use super::{
    super::rows::Lane,
    Freshness, LaneAges,
    ages::{BOUNDS, Total},
};

/// Lanes of one sink that are exported one by one: those with most events. The others together.
const LANES_MAX: usize = 1_000;

/// What is exported of all sinks.
#[derive(Debug, Default)]
pub struct Families {
    ages: Vec<Metric>,
    last: Vec<Metric>,
}

fn labels(sink: &str, lane: Option<&Lane>) -> Vec<LabelPair> {
    let pairs = [
        ("sink", sink),
        ("tenant", lane.map_or("", |lane| lane.tenant.as_str())),
        ("event_type", lane.map_or("", |lane| lane.event_type.as_str())),
        ("dead_letters", if lane.is_some_and(|lane| lane.dead) { "1" } else { "0" }),
    ];
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
    fn add(&mut self, sink: &str, lane: Option<&Lane>, own: &LaneAges) {
        let mut ages = Metric::from_label(labels(sink, lane));
        ages.set_histogram(histogram(&own.total));
        self.ages.push(ages);
        let mut gauge = Gauge::default();
        gauge.set_value(own.last);
        let mut last = Metric::from_label(labels(sink, lane));
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

impl Freshness {
    /// Adds this sink's lanes, those of tenants that are configured by name, the others together.
    pub fn export(&self, sink: &str, is_known: &dyn Fn(&TenantId) -> bool, to: &mut Families) {
        let ages = self.ages();
        let mut others = ages.others.clone();
        let mut lanes: Vec<_> = ages.lanes.iter().collect();
        lanes.sort_by_key(|(_, own)| std::cmp::Reverse(own.total.events));
        let mut shown = 0;
        for (lane, own) in lanes {
            if shown < LANES_MAX && is_known(&lane.tenant) {
                to.add(sink, Some(lane), own);
                shown += 1;
            } else {
                others.total.merge(&own.total);
                others.last = others.last.max(own.last);
            }
        }
        if 0 < others.total.events {
            to.add(sink, None, &others);
        }
    }
}
