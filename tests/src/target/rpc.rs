//! JSON-RPC 2.0 over a unix socket as SPDK's client speaks it: one object each way, with no framing around it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// A call that has no answer after this long has failed.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// The id of every request; there is one request a connection.
const REQUEST_ID: u64 = 1;

/// Why a call has no result.
#[derive(Debug)]
pub enum RpcError {
    /// The socket does not answer.
    Socket(std::io::Error),
    /// What came back is not JSON.
    Malformed(serde_json::Error),
    /// The answer has neither a result nor an error, or is not the answer to this request.
    NoAnswer(Value),
    /// The target refused.
    Refused {
        /// The error's code (JSON-RPC 2.0 section 5.1, and SPDK's own).
        code: i64,
        /// The error's message.
        message: String,
    },
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RpcError::Socket(error) => write!(formatter, "the RPC socket does not answer: {error}"),
            RpcError::Malformed(error) => write!(formatter, "the answer is not JSON: {error}"),
            RpcError::NoAnswer(answer) => write!(formatter, "not an answer: {answer}"),
            RpcError::Refused { code, message } => write!(formatter, "refused with {code}: {message}"),
        }
    }
}

impl std::error::Error for RpcError {}

/// Sends one request on a connection of its own and waits for its answer.
pub(super) fn call(socket: &Path, method: &str, params: Value) -> Result<Value, RpcError> {
    let mut request = json!({ "jsonrpc": "2.0", "id": REQUEST_ID, "method": method });
    if !params.is_null() {
        request["params"] = params;
    }
    let mut stream = UnixStream::connect(socket).map_err(RpcError::Socket)?;
    stream.set_read_timeout(Some(ANSWER_WAIT)).map_err(RpcError::Socket)?;
    stream.write_all(request.to_string().as_bytes()).map_err(RpcError::Socket)?;
    let mut answers = serde_json::Deserializer::from_reader(&stream).into_iter::<Value>();
    let mut answer = match answers.next() {
        Some(Ok(answer)) => answer,
        Some(Err(error)) if error.is_io() => return Err(RpcError::Socket(error.into())),
        Some(Err(error)) => return Err(RpcError::Malformed(error)),
        None => return Err(RpcError::Socket(std::io::ErrorKind::UnexpectedEof.into())),
    };
    if let Some(error) = answer.get("error") {
        let code = error["code"].as_i64().unwrap_or(0);
        return Err(RpcError::Refused {
            code,
            message: error["message"].as_str().unwrap_or_default().to_owned(),
        });
    }
    if answer["id"] != REQUEST_ID || answer.get("result").is_none() {
        return Err(RpcError::NoAnswer(answer));
    }
    Ok(answer["result"].take())
}
