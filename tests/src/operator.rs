//! An operator of a simulated target: a client of its RPC socket for use inside of a [`sim::world::Model`].

use serde_json::{Value, json};
use sim::process;
use sim::world::World;

/// What became of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It was done.
    Result(Value),
    /// It was refused: code and message.
    Refused(i64, String),
    /// The connection was lost first: it may have been done, or not.
    Lost,
}

/// A connection to the target, made again when it was lost.
#[derive(Debug)]
pub struct Operator {
    machine: u32,
    model: u32,
    end: Option<u32>,
    received: Vec<u8>,
    unsent: Vec<u8>,
    next_id: u64,
}

impl Operator {
    /// An operator on `machine`, played by the model with this number.
    #[must_use]
    pub fn new(machine: u32, model: u32) -> Self {
        Self { machine, model, end: None, received: Vec::new(), unsent: Vec::new(), next_id: 1 }
    }

    /// Connects, if the target listens. Whether there is a connection.
    pub fn connect(&mut self, world: &mut World) -> bool {
        if self.end.is_none() {
            self.end = world.connect(self.machine, process::RPC_SOCKET).ok();
            self.received.clear();
            self.unsent.clear();
            if let Some(end) = self.end {
                world.wait_for_end(end, self.model);
            }
        }
        self.end.is_some()
    }

    /// Calls a method. Connected, and one call at a time.
    pub fn call(&mut self, method: &str, params: &Value) {
        assert!(self.unsent.is_empty(), "one call at a time");
        let id = self.next_id;
        self.unsent = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
            .to_string()
            .into_bytes();
    }

    /// Goes on with the call; its answer, once there is one.
    pub fn poll(&mut self, world: &mut World) -> Option<Answer> {
        let Some(end) = self.end else { return Some(Answer::Lost) };
        while !self.unsent.is_empty() {
            match world.send_on(end, &self.unsent, Vec::new()) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if error.kind == runtime::ErrorKind::WouldBlock => break,
                Err(_) => return Some(self.lose(world)),
            }
        }
        let mut bytes = [0; 4096];
        loop {
            match world.receive_on(end, &mut bytes, &mut Vec::new()) {
                Ok(0) => return Some(self.lose(world)),
                Ok(len) => self.received.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind == runtime::ErrorKind::WouldBlock => break,
                Err(_) => return Some(self.lose(world)),
            }
        }
        let answer: Value = serde_json::from_slice(&self.received).ok()?;
        self.received.clear();
        assert_eq!(answer["id"], json!(self.next_id), "the answer to another call: {answer}");
        self.next_id += 1;
        Some(match answer.get("error") {
            Some(error) => Answer::Refused(
                error["code"].as_i64().expect("an error has a code"),
                error["message"].as_str().expect("an error has a message").into(),
            ),
            None => Answer::Result(answer["result"].clone()),
        })
    }

    /// Closes the connection, if there is one.
    pub fn hang_up(&mut self, world: &mut World) {
        self.lose(world);
    }

    fn lose(&mut self, world: &mut World) -> Answer {
        if let Some(end) = self.end.take() {
            world.close_end(end);
        }
        self.unsent.clear();
        self.next_id += 1;
        Answer::Lost
    }
}
