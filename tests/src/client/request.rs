//! Single requests with any chain, waited for one at a time: what the verified load would never send.

use std::time::{Duration, Instant};

use super::frontend::Frontend;
use super::ring::{Segment, Used};
use super::{ClientError, Result};

/// How long a single request may take.
pub const REQUEST_WAIT: Duration = Duration::from_secs(30);
/// Bytes of the request header.
const HEADER: u64 = 16;
/// What the status byte holds before the device has written it.
pub const STATUS_UNWRITTEN: u8 = 0xee;

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status byte ([`STATUS_UNWRITTEN`] when the device wrote none).
    pub status: u8,
    /// The used element's length.
    pub written: u32,
    /// What the device wrote into the data buffer.
    pub data: Vec<u8>,
}

/// Buffers for one request at a time.
#[derive(Debug, Clone, Copy)]
pub struct Requester {
    /// Guest address of the header.
    pub header: u64,
    /// Guest address of the data, page aligned.
    pub data: u64,
    /// Guest address of the status byte, in a page of its own.
    pub status: u64,
    /// Guest address of a table for indirect descriptors.
    pub table: u64,
    capacity: u64,
}

impl Requester {
    /// Buffers for up to `capacity` bytes of data in memory region `region`.
    pub fn new(frontend: &mut Frontend, region: usize, capacity: u64) -> Result<Requester> {
        const PAGE: u64 = 4096;
        Ok(Requester {
            header: frontend.memory.allocate(region, PAGE, PAGE)?,
            data: frontend.memory.allocate(region, capacity, PAGE)?,
            status: frontend.memory.allocate(region, PAGE, PAGE)?,
            table: frontend.memory.allocate(region, PAGE, PAGE)?,
            capacity,
        })
    }

    /// A request that the device reads from: OUT, FLUSH, DISCARD, WRITE_ZEROES, or anything of that shape.
    pub fn send(
        &self,
        frontend: &mut Frontend,
        queue: usize,
        kind: u32,
        sector: u64,
        payload: &[u8],
    ) -> Result<Answer> {
        assert!(payload.len() as u64 <= self.capacity);
        frontend.memory.write(self.data, payload);
        self.ask(frontend, queue, kind, sector, payload.len() as u32, false)
    }

    /// A request that the device answers with data: IN, GET_ID, or anything of that shape.
    pub fn fetch(
        &self,
        frontend: &mut Frontend,
        queue: usize,
        kind: u32,
        sector: u64,
        length: u32,
    ) -> Result<Answer> {
        assert!(u64::from(length) <= self.capacity);
        frontend.memory.write(self.data, &vec![0xa5; length as usize]);
        self.ask(frontend, queue, kind, sector, length, true)
    }

    /// Writes the header, for chains made by hand.
    pub fn write_header(&self, frontend: &Frontend, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend(0u32.to_le_bytes());
        header.extend(sector.to_le_bytes());
        frontend.memory.write(self.header, &header);
        frontend.memory.write(self.status, &[STATUS_UNWRITTEN]);
    }

    /// The chain of the textbook: header, data (if any), status.
    pub fn chain(&self, length: u32, device_writes: bool) -> Vec<Segment> {
        let mut chain = vec![Segment { address: self.header, length: HEADER as u32, device_writes: false }];
        if length > 0 {
            chain.push(Segment { address: self.data, length, device_writes });
        }
        chain.push(Segment { address: self.status, length: 1, device_writes: true });
        chain
    }

    /// The status byte as it is now.
    pub fn status(&self, frontend: &Frontend) -> u8 {
        let mut byte = [0];
        frontend.memory.read(self.status, &mut byte);
        byte[0]
    }

    fn ask(
        &self,
        frontend: &mut Frontend,
        queue: usize,
        kind: u32,
        sector: u64,
        length: u32,
        device_writes: bool,
    ) -> Result<Answer> {
        self.write_header(frontend, kind, sector);
        let chain = self.chain(length, device_writes);
        frontend.rings[queue]
            .push(&frontend.memory, &chain, None)
            .ok_or_else(|| ClientError::Violation("no free descriptors on an idle ring".into()))?;
        frontend.publish(queue);
        let used = wait_used(frontend, queue, REQUEST_WAIT)?;
        let mut data = vec![0; length as usize];
        frontend.memory.read(self.data, &mut data);
        Ok(Answer { status: self.status(frontend), written: used.written, data })
    }
}

/// Waits for the next used element of a queue.
pub fn wait_used(frontend: &mut Frontend, queue: usize, wait: Duration) -> Result<Used> {
    let deadline = Instant::now() + wait;
    loop {
        frontend.rings[queue].set_calls(&frontend.memory, true);
        if let Some(used) = frontend.rings[queue].pop(&frontend.memory)? {
            frontend.rings[queue].set_calls(&frontend.memory, false);
            return Ok(used);
        }
        if Instant::now() >= deadline {
            return Err(ClientError::Timeout { what: format!("a request on queue {queue}"), waited: wait });
        }
        frontend.wait_calls(Duration::from_millis(20));
    }
}
