//! JSON-RPC 2.0 as SPDK's client speaks it: one JSON object after the other, with nothing between them, or white space.
//!
//! There is no framing, so the end of a request is found by its brackets, each byte looked at once. What begins with
//! neither `{` nor `[`, breaks JSON's rules or is longer than [`REQUEST_MAX`] cannot be resumed after: it is answered
//! with a parse error and the connection ends. A batch (an array) is an invalid request; SPDK's releases before 26.09
//! have none either.

use super::error::{INVALID_REQUEST, PARSE_ERROR, RpcError, RpcResult};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde_json::{Map, Value, json};

/// Most bytes of one request: twice what SPDK's target takes.
pub const REQUEST_MAX: usize = 64 << 10;

/// A request that is well formed.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What the answer carries back: a string, a number, or null for a notification, whose result nobody wants.
    pub id: Value,
    /// The method's name.
    pub method: String,
    /// The parameters, empty when none were given.
    pub params: Map<String, Value>,
}

/// What came over a connection, read piece by piece.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    /// Bytes of the buffer that were looked at.
    scanned: usize,
    /// Brackets that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// How long the unfinished request was when it was last found to be good JSON so far.
    checked: usize,
}

/// What a [`Reader`] found.
#[derive(Debug, PartialEq)]
pub enum Read {
    /// Not a whole request yet.
    Incomplete,
    /// A request.
    Request(Request),
    /// A whole JSON value that is no request: answered with this id, and the connection goes on.
    Invalid(Value, RpcError),
    /// No JSON: answered, and the connection ends.
    Broken(RpcError),
}

impl Reader {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait, read or not.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the next request.
    pub fn read(&mut self) -> Read {
        if self.scanned == 0 {
            let blank = self.buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.buffer.drain(..blank);
            match self.buffer.first() {
                None => return Read::Incomplete,
                Some(b'{' | b'[') => {}
                Some(_) => return broken("a request begins with {"),
            }
        }
        while self.scanned < self.buffer.len() {
            if self.scanned == REQUEST_MAX {
                return broken(&format!("a request is longer than {REQUEST_MAX} bytes"));
            }
            let byte = self.buffer[self.scanned];
            self.scanned += 1;
            if self.in_string {
                (self.escaped, self.in_string) =
                    (byte == b'\\' && !self.escaped, byte != b'"' || self.escaped);
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                let whole = self.scanned;
                let value = serde_json::from_slice::<Value>(&self.buffer[..whole]);
                self.buffer.drain(..whole);
                *self = Self { buffer: core::mem::take(&mut self.buffer), ..Self::default() };
                return match value {
                    Ok(value) => request(value),
                    Err(error) => broken(&format!("{error}")),
                };
            }
        }
        // Nonsense whose brackets never close is told soon, and not when the client's patience ends; looked at again
        // only when it has doubled, so that a slow sender costs no more than a fast one.
        if self.buffer.len() >= 2 * self.checked {
            self.checked = self.buffer.len();
            if let Err(error) = serde_json::from_slice::<Value>(&self.buffer)
                && !error.is_eof()
            {
                return broken(&format!("{error}"));
            }
        }
        Read::Incomplete
    }
}

fn broken(reason: &str) -> Read {
    Read::Broken(RpcError::new(PARSE_ERROR, format!("Parse error: {reason}")))
}

/// Makes a request of a JSON value.
fn request(value: Value) -> Read {
    let Value::Object(mut object) = value else {
        let reason = "Invalid request: batches are not supported, send one object at a time";
        return Read::Invalid(Value::Null, RpcError::new(INVALID_REQUEST, reason));
    };
    let id = object.remove("id").unwrap_or(Value::Null);
    let invalid = |id: Value, reason: &str| {
        Read::Invalid(id, RpcError::new(INVALID_REQUEST, format!("Invalid request: {reason}")))
    };
    if !matches!(id, Value::Null | Value::String(_) | Value::Number(_)) {
        return invalid(Value::Null, "id is neither a string nor a number");
    }
    if object.remove("jsonrpc").is_some_and(|version| version != "2.0") {
        return invalid(id, "jsonrpc is not \"2.0\"");
    }
    let Some(Value::String(method)) = object.remove("method") else {
        return invalid(id, "method is missing or no string");
    };
    let params = match object.remove("params") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(params)) => params,
        Some(Value::Array(params)) if params.is_empty() => Map::new(),
        Some(_) => return invalid(id, "params is no object (parameters are given by name)"),
    };
    if let Some(key) = object.keys().next() {
        return invalid(id, &format!("unknown member {key:?}"));
    }
    Read::Request(Request { id, method, params })
}

/// The text that answers a request, empty for the result of a notification.
#[must_use]
pub fn answer(id: &Value, result: RpcResult<Value>) -> Vec<u8> {
    let object = match result {
        Ok(_) if id.is_null() => return Vec::new(),
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(RpcError { code, message }) => {
            json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
        }
    };
    // A line for each, as SPDK's target writes them.
    let mut text = format!("{object}").into_bytes();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn read_all(text: &str, piece: usize) -> Vec<Read> {
        let mut reader = Reader::default();
        let mut found = Vec::new();
        for bytes in text.as_bytes().chunks(piece) {
            reader.push(bytes);
            loop {
                match reader.read() {
                    Read::Incomplete => break,
                    broken @ Read::Broken(_) => {
                        found.push(broken);
                        return found;
                    }
                    other => found.push(other),
                }
            }
        }
        found
    }

    fn code(read: &Read) -> i32 {
        match read {
            Read::Invalid(_, error) | Read::Broken(error) => error.code,
            Read::Incomplete | Read::Request(_) => 0,
        }
    }

    #[test]
    fn requests_back_to_back_in_pieces_of_any_size() {
        let text = r#"{"jsonrpc":"2.0","method":"a","id":1,"params":{"x":"}\"{\\"}}{"method":"b","id":"2"}
            {"jsonrpc": "2.0", "method": "c"}"#;
        for piece in 1..text.len() {
            let found = read_all(text, piece);
            let methods = found
                .iter()
                .map(|read| match read {
                    Read::Request(request) => (request.method.as_str(), request.id.clone()),
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>();
            assert_eq!(
                methods,
                vec![("a", json!(1)), ("b", json!("2")), ("c", Value::Null)],
                "pieces of {piece}"
            );
        }
        let Read::Request(first) = &read_all(text, 1000)[0] else { panic!("a request") };
        assert_eq!(first.params["x"], "}\"{\\");
    }

    #[test]
    fn what_is_no_json_ends_the_connection() {
        for text in ["x", "{]", "{\"a\" 1}", "{garbage", "12", "\"text\""] {
            let found = read_all(text, 1000);
            assert_eq!(found.iter().map(code).collect::<Vec<_>>(), [PARSE_ERROR], "{text}");
        }
        assert!(read_all("  \n\t ", 2).is_empty());
        assert!(read_all("{\"method\":", 3).is_empty());
    }

    #[test]
    fn what_is_no_request_is_answered_and_the_next_one_is_read() {
        for text in [
            "[]",
            "[{\"method\":\"a\",\"id\":1}]",
            "{}",
            "{\"method\":1}",
            "{\"method\":\"a\",\"jsonrpc\":\"1.0\"}",
            "{\"method\":\"a\",\"id\":{}}",
            "{\"method\":\"a\",\"params\":7}",
            "{\"method\":\"a\",\"params\":[1]}",
            "{\"method\":\"a\",\"more\":1}",
        ] {
            let found = read_all(&format!("{text}{{\"method\":\"next\"}}"), 1000);
            assert_eq!(found.len(), 2, "{text}");
            assert_eq!(code(&found[0]), INVALID_REQUEST, "{text}");
            assert!(matches!(&found[1], Read::Request(request) if request.method == "next"));
        }
        let found = read_all("{\"method\":\"a\",\"id\":7,\"params\":7}", 1000);
        assert!(matches!(&found[0], Read::Invalid(id, _) if *id == json!(7)));
    }

    #[test]
    fn a_request_that_never_ends_is_cut_off() {
        let mut text = String::from("{\"method\":\"");
        text.extend(core::iter::repeat_n('a', REQUEST_MAX));
        let found = read_all(&text, 4096);
        assert_eq!(found.iter().map(code).collect::<Vec<_>>(), [PARSE_ERROR]);
        let deep = "[".repeat(1000);
        assert_eq!(read_all(&deep, 4096).iter().map(code).collect::<Vec<_>>(), [PARSE_ERROR]);
    }

    #[test]
    fn answers() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        assert_eq!(
            text(answer(&json!(1), Ok(json!(true)))),
            "{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":true}\n"
        );
        assert_eq!(text(answer(&Value::Null, Ok(json!(true)))), "");
        let error = RpcError::new(-1, "no");
        assert_eq!(
            text(answer(&Value::Null, Err(error))),
            "{\"error\":{\"code\":-1,\"message\":\"no\"},\"id\":null,\"jsonrpc\":\"2.0\"}\n"
        );
    }
}
