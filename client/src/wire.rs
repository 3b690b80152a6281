//! The edge to gRPC: how a channel is made, and what every request carries.
//!
//! The deadline goes out as `grpc-timeout`, and the daemon enforces it and answers with the time
//! spent per stage. [`Deadline::cut`] waits a little longer than that on this side, so that the
//! daemon's answer wins, and a daemon that hangs still ends the call.

use std::future::Future;
use std::time::Duration;

use forebay_proto::Reason;
use forebay_proto::pb::forebay_client::ForebayClient;
use tokio::time::{Instant, timeout_at};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::access::Access;
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::error::{ClientError, root_io_error};

/// The largest message taken. Manifest pages are the largest there are.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// How long after a deadline the daemon may still say that it passed.
const DEADLINE_GRACE: Duration = Duration::from_millis(500);

/// `grpc-timeout` has at most eight digits.
const TIMEOUT_COUNT_MAX: u128 = 99_999_999;

/// The end of a call's budget, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// The end of a budget that starts at `now`. One beyond the clock's range is none.
    pub(crate) fn after(now: Instant, budget: Option<Duration>) -> Self {
        Self(budget.and_then(|budget| now.checked_add(budget)))
    }

    /// No end.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// The earlier of this deadline and `budget` from `now`.
    pub(crate) fn at_most(self, now: Instant, budget: Duration) -> Self {
        let limit = now.checked_add(budget);
        Self(self.0.into_iter().chain(limit).min())
    }

    /// What is left; an error when that is nothing.
    fn remaining(self, now: Instant) -> Result<Option<Duration>, ClientError> {
        let Some(at) = self.0 else { return Ok(None) };
        match at.saturating_duration_since(now) {
            Duration::ZERO => Err(expired()),
            remaining => Ok(Some(remaining)),
        }
    }

    /// Runs `future` until the deadline and the daemon's grace have passed.
    pub(crate) async fn cut<F: Future>(self, future: F) -> Result<F::Output, ClientError> {
        match self.0 {
            Some(at) => timeout_at(at + DEADLINE_GRACE, future).await.map_err(|_| expired()),
            None => Ok(future.await),
        }
    }
}

fn expired() -> ClientError {
    ClientError::new(Reason::Deadline, "the deadline passed")
}

/// Connects to the daemon. A token goes in the clear to this machine only.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    access: &Access,
) -> Result<ForebayClient<Channel>, ClientError> {
    let unreachable = |error: tonic::transport::Error| match root_io_error(&error) {
        Some(error) => ClientError::unreachable(error, endpoint),
        None => {
            ClientError::gone(format!("the connection to forebayd at {endpoint} failed: {error}"))
        }
    };
    let tls = access.tls_config().filter(|_| endpoint.socket().is_none());
    if tls.is_none() && access.authorization().is_some() && !endpoint.is_local() {
        let message = format!("the token would go to {endpoint} in the clear: give TLS, too");
        return Err(ClientError::new(Reason::BadRequest, message));
    }
    let address = endpoint.dial(tls.is_some());
    let mut channel = tonic::transport::Endpoint::from_shared(address).map_err(unreachable)?;
    if let Some(tls) = tls {
        channel = channel.tls_config(tls).map_err(|error| {
            let message = format!("the certificates cannot be used: {error}");
            ClientError::new(Reason::BadRequest, message)
        })?;
    }
    let channel = channel.connect().await.map_err(unreachable)?;
    Ok(ForebayClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// A request with its deadline, and what the client gives with each: trace identity and token.
pub(crate) fn request<T>(
    message: T,
    deadline: Deadline,
    client: &Client,
) -> Result<Request<T>, ClientError> {
    let mut request = within(message, deadline)?;
    if let Some(trace_parent) = client.trace_parent() {
        request.metadata_mut().insert("traceparent", ascii(trace_parent.as_str())?);
    }
    if let Some(token) = client.access().authorization() {
        request.metadata_mut().insert("authorization", token.clone());
    }
    Ok(request)
}

/// A request with its deadline.
fn within<T>(message: T, deadline: Deadline) -> Result<Request<T>, ClientError> {
    let mut request = Request::new(message);
    if let Some(remaining) = deadline.remaining(Instant::now())? {
        request.metadata_mut().insert("grpc-timeout", ascii(&grpc_timeout(remaining))?);
    }
    Ok(request)
}

fn ascii(text: &str) -> Result<MetadataValue<Ascii>, ClientError> {
    text.parse().map_err(|_| {
        ClientError::new(Reason::BadRequest, format!("{text:?} cannot be sent in a header"))
    })
}

/// A duration as `grpc-timeout` writes it: the finest unit that fits eight digits, rounded up.
fn grpc_timeout(budget: Duration) -> String {
    let nanos = budget.as_nanos();
    let units = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60_000_000_000, 'M'),
        (3_600_000_000_000, 'H'),
    ];
    let fits = |&(unit_nanos, _): &(u128, char)| nanos.div_ceil(unit_nanos) <= TIMEOUT_COUNT_MAX;
    match units.iter().find(|unit| fits(unit)) {
        Some((unit_nanos, unit)) => format!("{}{unit}", nanos.div_ceil(*unit_nanos)),
        None => format!("{TIMEOUT_COUNT_MAX}H"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_at_most_eight_digits_and_is_never_shorter() {
        for (budget, header) in [
            (Duration::from_nanos(1), "1n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_001), "100001u"),
            (Duration::from_millis(250), "250000u"),
            (Duration::from_secs(30), "30000000u"),
            (Duration::from_secs(600), "600000m"),
            (Duration::from_secs(200_000), "200000S"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(grpc_timeout(budget), header);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_spent_deadline_sends_nothing() {
        let now = Instant::now();
        let error = within((), Deadline::after(now, Some(Duration::ZERO))).unwrap_err();
        assert_eq!(error.reason(), Reason::Deadline);
        let request = within((), Deadline::after(now, None)).unwrap();
        assert!(request.metadata().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_deadline_cuts() {
        let now = Instant::now();
        let long = Deadline::after(now, Some(Duration::from_secs(60)));
        let short = long.at_most(now, Duration::from_secs(1));
        assert_eq!(short, Deadline::after(now, None).at_most(now, Duration::from_secs(1)));
        let error = short.cut(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Deadline);
        assert_eq!(now.elapsed(), Duration::from_secs(1) + DEADLINE_GRACE);
    }
}
