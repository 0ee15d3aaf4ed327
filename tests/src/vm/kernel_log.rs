//! The guest kernel's messages, as the guest's init prints them: `LOG <6>[    1.234567] text`.

/// A message's level: 0 is the worst, 7 is for debugging (syslog's severities, RFC 5424 section 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(pub u8);

impl Level {
    /// Something is wrong, though the kernel goes on: WARN, a refused configuration, a suspicious device.
    pub const WARNING: Level = Level(4);
    /// The bits of a raw priority that are the level; the others are the facility.
    const MASK: u32 = 0b111;
}

/// One line of the kernel's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelMessage {
    /// How bad it is.
    pub level: Level,
    /// The text, with the kernel's time in front.
    pub text: String,
}

/// What a busy host makes the kernel of an emulated guest say of its own clock. It says nothing of a disk.
const EXCUSED: [&str; 1] = ["hrtimer: interrupt took"];

impl KernelMessage {
    /// Level warning or worse, and not about the emulated machine's clock.
    pub fn is_complaint(&self) -> bool {
        self.level <= Level::WARNING && !EXCUSED.iter().any(|excused| self.text.contains(excused))
    }

    /// The message on a console line, or None if the line is something else. A line that begins like a message but cannot
    /// be read is taken for an emergency: nothing that might be a complaint is passed over.
    pub fn parse(line: &str) -> Option<KernelMessage> {
        let message = line.strip_prefix("LOG ")?;
        let read = message.strip_prefix('<').and_then(|rest| {
            let (priority, text) = rest.split_once('>')?;
            let level = Level((priority.parse::<u32>().ok()? & Level::MASK) as u8);
            Some(KernelMessage { level, text: text.to_owned() })
        });
        Some(read.unwrap_or_else(|| KernelMessage { level: Level(0), text: message.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use super::{KernelMessage, Level};

    #[test]
    fn levels_are_read_without_their_facility() {
        let message =
            KernelMessage::parse("LOG <12>[    1.5] virtio_blk virtio0: id 3 is not a head!").unwrap();
        assert_eq!(message.level, Level::WARNING);
        assert_eq!(message.text, "[    1.5] virtio_blk virtio0: id 3 is not a head!");
        assert!(KernelMessage::parse("LOG <6>[    1.5] vda: 1 2").unwrap().level > Level::WARNING);
    }

    #[test]
    fn only_a_slow_clock_is_excused() {
        let is_complaint = |line| KernelMessage::parse(line).unwrap().is_complaint();
        assert!(is_complaint("LOG <3>[    4.2] I/O error, dev vda, sector 8 op 0x1:(WRITE)"));
        assert!(is_complaint("LOG <4>[    4.2] WARNING: CPU: 0 PID: 1"));
        assert!(!is_complaint("LOG <5>[    4.2] virtio_blk virtio0: [vda] new size: 81920"));
        assert!(!is_complaint("LOG <4>[   16.6] hrtimer: interrupt took 90749464 ns"));
    }

    #[test]
    fn a_broken_line_is_never_harmless() {
        assert_eq!(KernelMessage::parse("LOG <6").unwrap().level, Level(0));
        assert_eq!(KernelMessage::parse("MARK <3>"), None);
    }
}
