//! What is behind an error: clients say that a request failed, and why only in what they wrap.

use std::error::Error;
use std::fmt;

/// The error with its causes, as one text.
pub fn of(error: &(dyn Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    // An error often repeats its cause.
    texts.dedup_by(|cause, error| error.ends_with(cause.as_str()));
    texts.join(": ")
}

/// A request to the API server that failed, as people should read it: what the API server said, or why
/// it said nothing.
pub fn of_request(error: &kube::Error) -> impl fmt::Display + use<> {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => of(other),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Wrapped {
        text: &'static str,
        source: Box<dyn Error + Send + Sync>,
    }

    #[test]
    fn every_cause_is_said_once() {
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "Connection refused");
        let connect = Wrapped { text: "tcp connect error", source: refused.into() };
        assert_eq!(of(&connect), "tcp connect error: Connection refused");
        let service = Wrapped { text: "service: tcp connect error", source: connect.into() };
        assert_eq!(of(&service), "service: tcp connect error: Connection refused");
    }
}
