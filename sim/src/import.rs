//! Production joined to the simulator: what a target's flight recorders kept, as a run's log is.
//!
//! Each core has a file of its own; their events are merged by time. A file may be a dead life's, cut off anywhere.

use crate::scenario::Refused;
use crate::world::Line;
use stack::events;
use stack::recording::decode;

/// The log of the recordings: each named, for errors, with its bytes. Times count from the start of the earliest life.
pub fn log_of(recordings: &[(String, Vec<u8>)]) -> Result<Vec<Line>, Refused> {
    let decoded = recordings.iter().map(|(name, bytes)| {
        decode(bytes).map_err(|error| {
            Refused(format!(
                "{name}: {error}; give files that a target keeps as recorder-CORE in its state directory"
            ))
        })
    });
    let decoded = decoded.collect::<Result<Vec<_>, _>>()?;
    let start = decoded.iter().map(|recording| recording.header.started_ns).min().unwrap_or(0);
    let mut log = Vec::new();
    for recording in &decoded {
        let core = recording.header.core;
        log.extend(recording.events.iter().map(|event| Line {
            at_ns: event.at_ns.saturating_sub(start),
            headline: false,
            text: format!("core {core}: {}", events::Line(event)),
        }));
    }
    // Stable: events of one core keep their order where the clock did not move.
    log.sort_by_key(|line| line.at_ns);
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::Event;
    use stack::recording::{HEADER_LEN, Header, WRITTEN_OFFSET, event_words};

    fn recording(core: u32, started_ns: u64, times: &[u64]) -> (String, Vec<u8>) {
        let header = Header { core, capacity: 8, started_ns, started_unix_ns: 0 };
        let mut bytes = vec![0; header.file_len() as usize];
        let head = header.encode();
        bytes[..head.len()].copy_from_slice(&head);
        let mut at = HEADER_LEN as usize;
        for (head, at_ns) in times.iter().enumerate() {
            let event =
                Event { at_ns: *at_ns, kind: 1, detail: 1, a: head as u64, b: 4096, ..Event::default() };
            for word in event_words(&event) {
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
                at += 8;
            }
        }
        let written = WRITTEN_OFFSET as usize;
        bytes[written..written + 8].copy_from_slice(&(times.len() as u64).to_le_bytes());
        (format!("recorder-{core}"), bytes)
    }

    #[test]
    fn cores_are_merged_by_time() {
        let log = log_of(&[recording(0, 100, &[150, 300]), recording(1, 120, &[200])]).expect("good files");
        let lines: Vec<_> = log.iter().map(|line| (line.at_ns, line.text.as_str())).collect();
        assert_eq!(lines[0], (50, "core 0: request-submitted device 0 queue 0: op 1, head 0, offset 4096"));
        assert_eq!((lines[1].0, lines[2].0), (100, 200));
        assert!(lines[1].1.starts_with("core 1: "));
    }

    #[test]
    fn another_file_is_refused_by_name() {
        let Err(Refused(why)) = log_of(&[("README.md".into(), b"# Reprise".to_vec())]) else {
            panic!("taken")
        };
        assert!(why.starts_with("README.md: ") && why.contains("recorder-CORE"), "{why}");
    }
}
