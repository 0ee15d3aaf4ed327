//! Chrome trace events (the JSON that Perfetto and chrome://tracing open): a process for each group of lanes, a thread for
//! each row of a lane, complete events for bars and instants for marks. Times are in microseconds, as the format has it.

use super::{Group, Timeline};
use serde_json::{Value, json};

/// Rows of one lane at most, in the numbers of threads.
const ROWS: u32 = 1000;

/// The events as one JSON document.
#[must_use]
pub fn document(timeline: &Timeline) -> Value {
    let mut events = Vec::new();
    let process = |group: Group| group as u32 + 1;
    for (number, lane) in timeline.lanes.iter().enumerate() {
        let pid = process(lane.group);
        events.push(
            json!({ "ph": "M", "pid": pid, "name": "process_name", "args": { "name": lane.group.name() } }),
        );
        for row in 0..lane.rows {
            let tid = number as u32 * ROWS + row;
            events.push(json!({ "ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": { "name": lane.name } }));
        }
    }
    for bar in &timeline.bars {
        let lane = &timeline.lanes[bar.lane];
        let name = bar.request.map_or(bar.kind.to_owned(), |(_, number)| format!("{} #{number}", bar.kind));
        let mut args = json!({ "ended": bar.ended });
        if let Some((sector, sectors)) = bar.sectors {
            (args["sector"], args["sectors"]) = (json!(sector), json!(sectors));
        }
        events.push(json!({
            "ph": "X", "pid": process(lane.group), "tid": bar.lane as u32 * ROWS + bar.row,
            "ts": microseconds(bar.from_ns), "dur": microseconds(bar.to_ns - bar.from_ns),
            "name": name, "cat": bar.kind, "args": args,
        }));
    }
    for mark in &timeline.marks {
        let (pid, tid, scope) = match mark.lane {
            Some(lane) => (process(timeline.lanes[lane].group), lane as u32 * ROWS, "t"),
            None => (process(Group::Lives), 0, "g"),
        };
        events.push(json!({
            "ph": "i", "pid": pid, "tid": tid, "ts": microseconds(mark.at_ns), "s": scope,
            "name": mark.text, "cat": mark.kind,
        }));
    }
    json!({
        "displayTimeUnit": "ns",
        "traceEvents": events,
        "otherData": { "scenario": timeline.scenario, "seed": timeline.seed },
    })
}

fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1000.0
}
