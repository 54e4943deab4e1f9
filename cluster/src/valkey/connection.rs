//! Connections for calls: to the one server, to the primary that Sentinels name, to a cluster of servers.

use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisFuture,
    RedisResult, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClientBuilder,
    cluster_async::{ClusterConnection, Connect},
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr},
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::{
    Valkey, eviction, random_u64,
    stream::{ANSWER_BYTES_MAX, Stream, UNCONFIRMED_MAX},
};
use crate::{
    target::{Place, Target},
    valkey_error::ValkeyError,
};

/// One server of several: the others must still be asked in time when it swallows what it is sent.
pub(super) const SERVER_CONNECT_DEADLINE: Duration = Duration::from_millis(150);

/// To whatever takes calls.
#[derive(Clone)]
pub(super) enum Connection {
    One(Metered),
    Cluster(ClusterConnection<Metered>),
}

impl Connection {
    /// In a cluster to the primary of `slot`; without one to where the client sends such a command.
    pub async fn run(&mut self, command: &Cmd, slot: Option<Slot>) -> RedisResult<Value> {
        match (self, slot) {
            (Connection::One(connection), _) => connection.req_packed_command(command).await,
            (Connection::Cluster(connection), None) => connection.req_packed_command(command).await,
            (Connection::Cluster(connection), Some(slot)) => {
                let primary = SingleNodeRoutingInfo::SpecificNode(Route::with_slot(slot, SlotAddr::Master));
                connection.route_command(command.clone(), RoutingInfo::SingleNode(primary)).await
            }
        }
    }
}

/// A connection to one server, which breaks when an answer is too long.
#[derive(Clone)]
pub(super) struct Metered {
    calls: MultiplexedConnection,
    /// `None` where the client drives it.
    _driver: Option<Arc<Driver>>,
}

/// Ends with the last that uses the connection, whatever the server does.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Metered {
    async fn open(info: &ConnectionInfo, ca: Option<&[u8]>) -> RedisResult<Metered> {
        let stream = Stream::open(info, ca, &ANSWER_BYTES_MAX).await?;
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let (calls, driver) = MultiplexedConnection::new_with_config(info.redis_settings(), stream, config).await?;
        let driver = Driver(tokio::spawn(driver).abort_handle());
        Ok(Metered { calls, _driver: Some(Arc::new(driver)) })
    }
}

impl ConnectionLike for Metered {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let answer = self.calls.req_packed_command(command);
        Box::pin(async move { answer.await.map_err(sent_once) })
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        self.calls.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.calls.get_db()
    }
}

/// What a server has answered is left to the client: it did nothing, and the client of a cluster goes on to the server that it names. What was not
/// answered may have been done. That client would send it again, and give the second answer for the first: a worker whose completion was done, believed
/// and then lost by a failover would hear of its first one that the item is there, and drop a copy that its owner has given up. Nothing sends it again
/// but who knows that it may have been done.
fn sent_once(error: RedisError) -> RedisError {
    if error.code().is_some() { error } else { (ErrorKind::Client, "no answer", error.to_string()).into() }
}

impl Connect for Metered {
    /// To one server of a cluster.
    fn connect_with_config<'a, T: IntoConnectionInfo + Send + 'a>(info: T, config: AsyncConnectionConfig) -> RedisFuture<'a, Metered> {
        Box::pin(async move {
            let info = info.into_connection_info()?;
            if let ConnectionAddr::TcpTls { .. } = info.addr() {
                // What the certificate must lead to is known to the client alone: here only time bounds an answer.
                let calls = MultiplexedConnection::connect_with_config(info, config).await?;
                return Ok(Metered { calls, _driver: None });
            }
            let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
            timeout(SERVER_CONNECT_DEADLINE, Metered::open(&info, None)).await.map_err(late)?
        })
    }
}

impl Valkey {
    pub(super) async fn connect(&self) -> Result<Connection, ValkeyError> {
        let failed = |error: RedisError| ValkeyError::of_client(&error);
        let target = self.target_now().await;
        let mut connection = match &target.place {
            Place::Cluster(nodes) => {
                let mut builder = ClusterClientBuilder::new(nodes.clone())
                    .connection_timeout(SERVER_CONNECT_DEADLINE)
                    .tcp_settings(tcp_settings())
                    .retries(3)
                    .min_retry_wait(10)
                    .max_retry_wait(100);
                if let Some(certificates) = &target.certificates {
                    builder = builder.certs(certificates.clone());
                }
                let client = builder.build().map_err(failed)?;
                Connection::Cluster(client.get_async_generic_connection().await.map_err(failed)?)
            }
            Place::Single(_) | Place::Sentinel { .. } => {
                Connection::One(Metered::open(&server(&target).await?, target.ca()).await.map_err(failed)?)
            }
        };
        eviction::refuse(&mut connection).await?;
        Ok(connection)
    }
}

/// The server that takes writes: the only one, or the one that Sentinels name; of a cluster any.
pub(super) async fn server(target: &Target) -> Result<ConnectionInfo, ValkeyError> {
    match &target.place {
        Place::Single(info) => Ok(info.clone()),
        Place::Cluster(nodes) => {
            let node = usize::try_from(random_u64()).unwrap_or(0) % nodes.len();
            Ok(nodes[node].clone())
        }
        Place::Sentinel { sentinels, name, node } => {
            let asks = sentinels.iter().map(|address| sentinel(target, address, name, node)).collect::<RedisResult<Vec<_>>>();
            let asks = asks.map_err(|error| ValkeyError::of_client(&error))?;
            first_answer(asks).await.map_err(|error| ValkeyError::of_client(&error))
        }
    }
}

/// What asks one Sentinel for the primary: each side with its own login, both by the same certificates.
fn sentinel(target: &Target, sentinel: &ConnectionInfo, name: &str, node: &ConnectionInfo) -> RedisResult<SentinelClient> {
    let mut client = SentinelClientBuilder::new([sentinel.addr().clone()], name, SentinelServerType::Master)?
        .set_client_to_redis_tcp_settings(tcp_settings())
        .set_client_to_sentinel_tcp_settings(tcp_settings());
    if target.uses_tls {
        client = client.set_client_to_redis_tls_mode(TlsMode::Secure);
        if let Some(certificates) = &target.certificates {
            client =
                client.set_client_to_redis_certificates(certificates.clone()).set_client_to_sentinel_certificates(certificates.clone());
        }
    }
    let (to_server, to_sentinel) = (node.redis_settings(), sentinel.redis_settings());
    client = client.set_client_to_redis_db(to_server.db());
    if let Some(user) = to_server.username() {
        client = client.set_client_to_redis_username(user);
    }
    if let Some(password) = to_server.password() {
        client = client.set_client_to_redis_password(password);
    }
    if let Some(user) = to_sentinel.username() {
        client = client.set_client_to_sentinel_username(user);
    }
    if let Some(password) = to_sentinel.password() {
        client = client.set_client_to_sentinel_password(password);
    }
    client.build()
}

/// Asks all Sentinels at once, each for itself: the client's own way waits for those before in the list, and one can be silent.
async fn first_answer(sentinels: Vec<SentinelClient>) -> RedisResult<ConnectionInfo> {
    let mut asked = JoinSet::new();
    for mut sentinel in sentinels {
        asked.spawn(async move { Ok(sentinel.async_get_client().await?.get_connection_info().clone()) });
    }
    let mut answer = Err((ErrorKind::InvalidClientConfig, "no Sentinel is named").into());
    while let Some(Ok(next)) = asked.join_next().await {
        answer = next;
        if answer.is_ok() {
            break;
        }
    }
    answer
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true).set_user_timeout(UNCONFIRMED_MAX)
}
