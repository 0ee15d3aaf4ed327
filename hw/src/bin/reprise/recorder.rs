//! `reprise recorder`: prints what a flight recorder holds, oldest first.

use crate::Failure;
use crate::arguments::Recorder;
use runtime::Event;
use serde_json::json;
use stack::events::{Kind, Line};
use stack::recording::{Recording, decode};
use std::io::{BufWriter, ErrorKind, Write};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Prints the file.
pub(crate) fn run(arguments: &Recorder) -> Result<(), Failure> {
    let path = arguments.file.display();
    let bytes = std::fs::read(&arguments.file)
        .map_err(|error| Failure::bad_input(format!("cannot read {path}: {error}")))?;
    let recording = decode(&bytes).map_err(|error| Failure::bad_input(format!("{path}: {error}")))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let printed =
        if arguments.json { print_json(&recording, &mut out) } else { print_lines(&recording, &mut out) };
    match printed.and_then(|()| out.flush()) {
        // Whoever closes the pipe has read enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::refused(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

fn print_lines(recording: &Recording, out: &mut impl Write) -> std::io::Result<()> {
    let Recording { header, first, events } = recording;
    writeln!(
        out,
        "core {}, started {}, {} events{}",
        header.core,
        time_of_day(recording, header.started_ns),
        events.len(),
        if *first > 0 { format!(" ({first} before them were overwritten)") } else { String::new() }
    )?;
    for event in events {
        writeln!(out, "{} {}", time_of_day(recording, event.at_ns), Line(event))?;
    }
    Ok(())
}

fn print_json(recording: &Recording, out: &mut impl Write) -> std::io::Result<()> {
    for (number, event) in (recording.first..).zip(&recording.events) {
        let Event { at_ns, kind, device, queue, detail, a, b } = *event;
        let name = Kind::from_number(kind).map(Kind::name);
        let line = json!({
            "number": number,
            "core": recording.header.core,
            "time": time_of_day(recording, at_ns),
            "at_ns": at_ns,
            "kind": kind,
            "name": name,
            "device": device,
            "queue": queue,
            "detail": detail,
            "a": a,
            "b": b,
        });
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// The time of day, UTC, at a moment of the machine's clock.
fn time_of_day(recording: &Recording, at_ns: u64) -> String {
    let header = &recording.header;
    let unix_ns = i128::from(header.started_unix_ns) + i128::from(at_ns) - i128::from(header.started_ns);
    OffsetDateTime::from_unix_timestamp_nanos(unix_ns)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        // A moment that is none: the event is still worth printing.
        .unwrap_or_else(|| format!("{at_ns} ns"))
}
