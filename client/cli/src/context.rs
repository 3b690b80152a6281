//! The connection of one command, and what is left of its deadline.

use std::env;
use std::path::{Path, PathBuf};

use forebay_client::{CallOptions, Client, ClientError, Endpoint, Failure, Reason};
use tokio::time::Instant;

use crate::args::{Budget, Global};
use crate::error::CliError;

/// Where a daemon that runs as a service listens.
const SYSTEM_SOCKET: &str = "/run/forebay/forebay.sock";

/// Where one that runs for a user does, under `$XDG_RUNTIME_DIR`.
const USER_SOCKET: &str = "forebay/forebay.sock";

/// A connection, and the command's deadline.
#[derive(Debug)]
pub(crate) struct Context {
    client: Client,
    options: CallOptions,
    ends: Option<Instant>,
}

impl Context {
    /// Connects; the deadline starts now.
    pub(crate) async fn connect(global: &Global) -> Result<Self, CliError> {
        Self::connect_within(global, global.deadline).await
    }

    /// Connects, with another deadline than the one that was given.
    pub(crate) async fn connect_within(
        global: &Global,
        Budget(budget): Budget,
    ) -> Result<Self, CliError> {
        let ends = budget.and_then(|budget| Instant::now().checked_add(budget));
        let connecting = Client::connect_with(endpoint(global)?, global.access.read()?);
        let client = match ends {
            Some(at) => tokio::time::timeout_at(at, connecting).await.map_err(|_| expired())??,
            None => connecting.await?,
        };
        let options =
            CallOptions { trace_parent: global.trace_parent.clone(), ..CallOptions::default() };
        Ok(Self { client, options, ends })
    }

    /// The connection, for a call within what is left.
    pub(crate) fn client(&self) -> Client {
        let now = Instant::now();
        let deadline = self.ends.map(|ends| ends.saturating_duration_since(now));
        self.client.with_options(CallOptions { deadline, ..self.options.clone() })
    }
}

/// Where the daemon listens.
pub(crate) fn endpoint(global: &Global) -> Result<Endpoint, ClientError> {
    match &global.endpoint {
        Some(endpoint) => Ok(endpoint.clone()),
        None => default_endpoint(env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)),
    }
}

fn expired() -> ClientError {
    Failure::new(Reason::Deadline, "the deadline passed while connecting to forebayd").into()
}

/// The system's daemon if it has a socket, else the user's.
fn default_endpoint(runtime_dir: Option<PathBuf>) -> Result<Endpoint, ClientError> {
    let system = Path::new(SYSTEM_SOCKET);
    match runtime_dir.filter(|dir| dir.is_absolute()) {
        Some(dir) if !system.exists() => Endpoint::unix(&dir.join(USER_SOCKET)),
        _ => Endpoint::unix(system),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_system_socket_the_users_is_the_default() {
        if Path::new(SYSTEM_SOCKET).exists() {
            return;
        }
        let endpoint =
            |dir: Option<&str>| default_endpoint(dir.map(PathBuf::from)).unwrap().to_string();
        assert_eq!(endpoint(Some("/run/user/7")), "unix:///run/user/7/forebay/forebay.sock");
        assert_eq!(endpoint(Some("relative")), "unix:///run/forebay/forebay.sock");
        assert_eq!(endpoint(None), "unix:///run/forebay/forebay.sock");
    }
}
