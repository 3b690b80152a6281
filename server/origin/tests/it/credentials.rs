//! Where credentials come from, and what becomes of a read when the origin refuses them: rows 19
//! and 20 of the reliability table.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forebay_origin::{
    ObjectMeta, OriginBlock, OriginError, OriginErrorKind, OriginSettings, OriginStore, Origins,
};
use forebay_testkit::{
    AccessKey, AzureOptions, AzureOrigin, BlackHole, Content, Fault, FaultRule, Op, S3Options,
    S3Origin,
};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::server::{Act, Asked, Server, response, status};
use crate::{Names, log, origins, quick, request, tls, uri, whole};

const BYTES: u64 = 64 << 10;
const SECRET: &str = "canary-of-the-secret";
const TOKEN: &str = "canary-of-the-token";

fn content() -> Content {
    Content::synthetic(11, BYTES)
}

/// The how manieth temporary key.
fn temporary(number: usize) -> AccessKey {
    AccessKey {
        id: format!("ASIA{number}"),
        secret: format!("{SECRET}{number}"),
        token: Some(format!("{TOKEN}{number}")),
    }
}

async fn s3() -> S3Origin {
    let origin = S3Origin::start(S3Options::default()).await;
    origin.put("bucket", "o", content());
    origin
}

fn settings(vars: &[(&str, &str)]) -> OriginSettings {
    let env = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    OriginSettings { env: env.collect(), ..quick() }
}

/// Settings without keys: `vars` say where there are some.
fn for_origin(origin: &S3Origin, vars: &[(&str, &str)]) -> OriginSettings {
    let mut settings = settings(vars);
    settings.env.insert("AWS_ENDPOINT_URL".to_owned(), origin.endpoint());
    settings.env.entry("AWS_EC2_METADATA_DISABLED".to_owned()).or_insert_with(|| "true".to_owned());
    settings
}

async fn opened(settings: OriginSettings) -> (Arc<dyn OriginStore>, ObjectMeta) {
    let uri = uri("s3://bucket/o");
    let store = origins(settings).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    assert_eq!(meta.bytes, BYTES);
    (store, meta)
}

async fn refused(settings: OriginSettings) -> OriginError {
    let uri = uri("s3://bucket/o");
    let store = match origins(settings).open(&uri) {
        Ok(store) => store,
        Err(error) => return error,
    };
    store.head(uri.key()).await.unwrap_err()
}

async fn reads(store: &dyn OriginStore, meta: &ObjectMeta) {
    let bytes = whole(store, meta).await;
    assert!(content().matches(0, &bytes), "wrong bytes");
}

/// A key as metadata services and containers write it, good for so long.
fn document(key: &AccessKey, until: &str) -> Vec<u8> {
    let AccessKey { id, secret, token } = key;
    let body = format!(
        "{{\"Code\":\"Success\",\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"{secret}\",\
         \"Token\":\"{}\",\"Expiration\":\"{until}\"}}",
        token.as_deref().unwrap()
    );
    response(200, &[("date", "Tue, 01 Jan 2030 00:00:00 GMT")], body.as_bytes())
}

/// An instance's metadata: another key at each conversation, all of which the origin accepts.
pub(crate) async fn metadata(origin: &Arc<S3Origin>) -> (Server, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let (gives, accepts) = (Arc::clone(&given), Arc::clone(origin));
    let server = Server::start(move |asked| {
        let token = asked.header("x-aws-ec2-metadata-token") == Some("T");
        match (asked.method.as_str(), asked.path()) {
            ("PUT", "/latest/api/token") => vec![Act::Send(response(200, &[], b"T"))],
            ("GET", "/latest/meta-data/iam/security-credentials/") if token => {
                vec![Act::Send(response(200, &[], b"role\n"))]
            }
            ("GET", "/latest/meta-data/iam/security-credentials/role") if token => {
                let key = temporary(gives.fetch_add(1, Ordering::Relaxed));
                accepts.accept(key.clone());
                vec![Act::Send(document(&key, "2030-01-01T06:00:00Z"))]
            }
            _ => status(401),
        }
    })
    .await;
    (server, given)
}

pub(crate) fn of_instance(origin: &S3Origin, metadata: &Server) -> OriginSettings {
    let endpoint = format!("http://{}/", metadata.address);
    let vars = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str()),
        ("AWS_EC2_METADATA_DISABLED", "false"),
    ];
    for_origin(origin, &vars)
}

#[tokio::test]
async fn an_expired_token_is_renewed_once_for_all_who_were_refused() {
    let origin = Arc::new(s3().await);
    let (metadata, given) = metadata(&origin).await;
    let (store, meta) = opened(of_instance(&origin, &metadata)).await;
    for round in 0..3 {
        assert_eq!(given.load(Ordering::Relaxed), round + 1);
        for _ in 0..3 {
            reads(&*store, &meta).await;
        }
        origin.expire(&temporary(round).id);
        join_all((0..64).map(|_| reads(&*store, &meta))).await;
    }
    assert_eq!(given.load(Ordering::Relaxed), 4, "one renewal for each time");
}

#[tokio::test]
async fn a_read_that_was_refused_goes_on_at_its_missing_byte() {
    let origin = Arc::new(s3().await);
    let (metadata, given) = metadata(&origin).await;
    let (store, meta) = opened(of_instance(&origin, &metadata)).await;
    let expired = Fault::ErrorCode { status: 400, code: "ExpiredToken" };
    origin.fault(FaultRule::new("o", Fault::TruncateTo(BYTES / 2)).nth(1));
    origin.fault(FaultRule::new("o", expired).nth(2));
    let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
    let record = store.read(&request(&meta, 0..BYTES), &mut bytes).await.unwrap();
    assert!(content().matches(0, &bytes));
    assert_eq!((record.attempts, record.bytes_received), (3, BYTES));
    let ranges: Vec<_> = origin.records().into_iter().filter_map(|record| record.range).collect();
    assert_eq!(ranges, [0..BYTES, BYTES / 2..BYTES, BYTES / 2..BYTES]);
    assert_eq!(given.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn what_is_refused_with_new_credentials_too_is_refused() {
    use OriginErrorKind as K;
    let table = [(400, "ExpiredToken", K::Unauthenticated), (403, "InvalidAccessKeyId", K::Denied)];
    for (code, name, kind) in table {
        let origin = Arc::new(s3().await);
        let (metadata, given) = metadata(&origin).await;
        let (store, meta) = opened(of_instance(&origin, &metadata)).await;
        origin.fault(FaultRule::new("o", Fault::ErrorCode { status: code, code: name }));
        for call in 1..=20_u64 {
            let mut bytes = vec![0; 10];
            let error = store.read(&request(&meta, 0..10), &mut bytes).await.unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.attempts <= 2 && error.to_string().contains(name), "{error}");
            assert!(origin.counts("o").gets <= 2 * call);
        }
        // The metadata service is no victim of an origin that refuses everything.
        assert!((2..=5).contains(&given.load(Ordering::Relaxed)), "{given:?}");
    }
}

#[tokio::test]
async fn what_is_denied_is_no_matter_of_credentials() {
    let origin = Arc::new(s3().await);
    let (metadata, given) = metadata(&origin).await;
    let (store, meta) = opened(of_instance(&origin, &metadata)).await;
    origin.fault(FaultRule::new("o", Fault::Status { code: 403, retry_after: None }).on_any());
    let mut bytes = vec![0; 10];
    let read = store.read(&request(&meta, 0..10), &mut bytes).await.unwrap_err();
    let head = store.head(&meta.key).await.unwrap_err();
    for error in [read, head] {
        assert_eq!((error.kind, error.attempts), (OriginErrorKind::Denied, 1), "{error}");
    }
    assert_eq!(given.load(Ordering::Relaxed), 1);
}

/// The AWS tools' files in a folder, with one key.
fn write_profile(folder: &Path, profile: &str, key: &AccessKey) {
    let AccessKey { id, secret, token } = key;
    let token = token.as_ref().map(|token| format!("aws_session_token = {token}\n"));
    let text = format!(
        "[{profile}]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n{}",
        token.unwrap_or_default()
    );
    // As the tools do: what is read is always whole.
    std::fs::write(folder.join("new"), text).unwrap();
    std::fs::rename(folder.join("new"), folder.join("credentials")).unwrap();
}

#[tokio::test]
async fn a_profile_gives_keys_region_and_endpoint_and_its_rotation_is_followed() {
    let origin = s3().await;
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".aws");
    std::fs::create_dir(&folder).unwrap();
    let text = format!("[profile p]\nregion = eu-test-7\nendpoint_url = {}\n", origin.endpoint());
    std::fs::write(folder.join("config"), text).unwrap();
    let home = home.path().to_str().unwrap();
    for number in 0..3 {
        origin.accept(temporary(number));
    }
    write_profile(&folder, "p", &temporary(0));
    let (store, meta) = opened(settings(&[("HOME", home), ("AWS_PROFILE", "p")])).await;
    reads(&*store, &meta).await;

    // While a GET is refused, which says why, and while a HEAD is, which does not.
    origin.forget(&temporary(0).id);
    write_profile(&folder, "p", &temporary(1));
    reads(&*store, &meta).await;
    origin.expire(&temporary(1).id);
    write_profile(&folder, "p", &temporary(2));
    store.head(&meta.key).await.unwrap();
    assert_eq!(origin.counts("o").heads, 3);
    reads(&*store, &meta).await;
    assert_eq!(origin.counts("o").gets, 4, "one of each kind was refused");
}

#[tokio::test]
async fn what_no_profile_can_be_made_of_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let table = [
        ("[profile p]\nrole_arn = r\nsource_profile = q\n", "source_profile"),
        ("[profile p]\ncredential_process = /bin/true\n", "credential_process"),
        ("[profile p]\nsso_session = s\n", "sso_session"),
        ("[profile p]\naws_access_key_id = a\n", "without aws_secret_access_key"),
        ("[default]\nregion = x\n", "profile p is neither in"),
    ];
    for (text, want) in table {
        std::fs::write(&config, text).unwrap();
        let vars = [("AWS_CONFIG_FILE", config.to_str().unwrap()), ("AWS_PROFILE", "p")];
        let error = refused(settings(&vars)).await;
        assert!(error.to_string().contains(want), "{error}");
    }
    let error = refused(settings(&[("AWS_SECRET_ACCESS_KEY", SECRET)])).await;
    assert_eq!(error.kind, OriginErrorKind::Unauthenticated);
    assert!(error.to_string().contains("AWS_ACCESS_KEY_ID is not set"), "{error}");
    let error = refused(settings(&[("AWS_EC2_METADATA_DISABLED", "true"), ("HOME", "/h")])).await;
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Unauthenticated, 1));
    for tried in ["environment", "/h/.aws/credentials", "container", "metadata service is disabled"]
    {
        assert!(error.to_string().contains(tried), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_metadata_service_that_hangs_is_waited_for_two_seconds() {
    let hole = BlackHole::open();
    let endpoint = format!("http://{}", hole.address());
    let full = format!("{endpoint}/creds");
    let instance = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str())];
    let container = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", full.as_str())];
    for vars in [instance, container] {
        let begun = Instant::now();
        let uri = uri("s3://bucket/o");
        let store = origins(settings(&vars)).open(&uri).unwrap();
        let all = join_all((0..100).map(|_| store.head(uri.key()))).await;
        for error in all.into_iter().map(Result::unwrap_err) {
            assert_eq!(error.kind, OriginErrorKind::Unauthenticated);
            assert_eq!((error.attempts, error.backoff), (1, Duration::ZERO));
            let shown = error.to_string();
            assert!(shown.contains("did not answer within 2 s"), "{shown}");
            assert!(shown.contains(&endpoint), "{shown}");
        }
        assert!(begun.elapsed() < Duration::from_millis(2100), "they wait together");
    }
}

#[tokio::test]
async fn a_container_gives_keys_to_who_has_its_token() {
    let origin = Arc::new(s3().await);
    origin.accept(temporary(0));
    let server = Server::start(|asked: &Asked| match asked.header("authorization") {
        Some(token) if token == TOKEN && asked.path() == "/creds" => {
            vec![Act::Send(document(&temporary(0), "2030-01-01T06:00:00Z"))]
        }
        _ => status(403),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let url = server.url("creds");
    let by_file = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().unwrap()),
    ];
    let by_value = [by_file[0], ("AWS_CONTAINER_AUTHORIZATION_TOKEN", TOKEN)];
    for vars in [by_file, by_value] {
        let (store, meta) = opened(for_origin(&origin, &vars)).await;
        reads(&*store, &meta).await;
    }
    let error = refused(for_origin(&origin, &by_file[..1])).await;
    assert!(error.to_string().contains("answered with status 403"), "{error}");
    let far = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/x?canary")];
    let error = refused(for_origin(&origin, &far)).await;
    assert!(error.to_string().contains("neither https nor on this machine"), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

/// An STS behind TLS that gives a key for a token; and what it was sent.
async fn sts() -> (u16, JoinSet<()>, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, sent) = (tls::acceptor(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let (mut tasks, seen) = (JoinSet::new(), Arc::clone(&sent));
    tasks.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut bytes = Vec::new();
            let all = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("WebIdentityToken=");
            while !all(&bytes) && stream.read_buf(&mut bytes).await.unwrap() > 0 {}
            seen.lock().unwrap().push(String::from_utf8(bytes).unwrap());
            let AccessKey { id, secret, token } = temporary(0);
            let xml = format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                 <SessionToken>{}</SessionToken><SecretAccessKey>{secret}</SecretAccessKey>\
                 <Expiration>2999-01-01T00:00:00Z</Expiration><AccessKeyId>{id}</AccessKeyId>\
                 </Credentials></AssumeRoleWithWebIdentityResult>\
                 </AssumeRoleWithWebIdentityResponse>",
                token.unwrap()
            );
            let headers = [("connection", "close")];
            stream.write_all(&response(200, &headers, xml.as_bytes())).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (port, tasks, sent)
}

#[tokio::test]
async fn a_web_identity_is_exchanged_for_keys() {
    let origin = s3().await;
    origin.accept(temporary(0));
    let (port, _tasks, sent) = sts().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let config = folder.path().join("config");
    let text = format!(
        "[default]\nrole_arn = arn:aws:iam::1:role/of profile\nweb_identity_token_file = {}\n",
        file.display()
    );
    std::fs::write(&config, text).unwrap();
    let endpoint = format!("https://origin.test:{port}");
    let of_variables = [
        ("AWS_ENDPOINT_URL_STS", endpoint.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.to_str().unwrap()),
    ];
    let of_profile = [of_variables[0], ("AWS_CONFIG_FILE", config.to_str().unwrap())];
    for (vars, role) in [(&of_variables[..], "role%2Fr&"), (&of_profile, "role%2Fof+profile&")] {
        let mut settings = for_origin(&origin, vars);
        settings.origins = vec![OriginBlock {
            prefix: "s3://".to_owned(),
            ca_file: Some(tls::fixture("ca.pem")),
            allow_http: true,
            ..OriginBlock::default()
        }];
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let names = Arc::new(Names(vec![("origin.test", vec![local])]));
        let origins = Origins::new(settings, names).unwrap();
        let uri = uri("s3://bucket/o");
        let store = origins.open(&uri).unwrap();
        let meta = store.head(uri.key()).await.unwrap();
        reads(&*store, &meta).await;
        let request = sent.lock().unwrap().pop().unwrap();
        assert!(request.starts_with("POST / HTTP/1.1\r\n"), "the token is in no URL");
        assert!(request.contains(role) && request.contains("RoleSessionName=forebay"));
    }
    assert!(sent.lock().unwrap().is_empty(), "one exchange each");
}

#[tokio::test]
async fn requests_are_signed_for_the_time_of_their_origin() {
    for ahead_seconds in [-86_400, -3600, 3600, 40_000_000] {
        let options = S3Options { clock_ahead_seconds: ahead_seconds, ..S3Options::default() };
        let origin = S3Origin::start(options).await;
        origin.put("bucket", "o", content());
        origin.put("bucket", "p/a b+c", content());
        let settings = OriginSettings { env: origin.env().into_iter().collect(), ..quick() };
        let uri = uri("s3://bucket/");
        let store = origins(settings).open(&uri).unwrap();
        // A listing, whose refusal says what it is about, and whose query is signed.
        let found = store.list(uri.key(), 9).await.unwrap();
        assert_eq!(origin.total().lists, 2, "learnt from the first refusal");
        for meta in &found {
            reads(&*store, meta).await;
            store.head(&meta.key).await.unwrap();
        }
        assert_eq!((origin.total().gets, origin.total().heads), (2, 2), "and kept");
    }
}

#[tokio::test]
async fn a_far_clock_is_learnt_from_a_refusal_that_says_nothing_and_by_many_at_once() {
    let options = S3Options { clock_ahead_seconds: 7200, ..S3Options::default() };
    let origin = S3Origin::start(options).await;
    origin.put("bucket", "o", content());
    let settings = OriginSettings { env: origin.env().into_iter().collect(), ..quick() };
    let key = uri("s3://bucket/o");
    let store = origins(settings).open(&key).unwrap();
    let all = join_all((0..32).map(|_| store.head(key.key()))).await;
    assert!(all.into_iter().all(|meta| meta.unwrap().bytes == BYTES));
    let before = origin.counts("o").heads;
    assert!(before <= 64, "each was refused at most once");
    store.head(key.key()).await.unwrap();
    assert_eq!(origin.counts("o").heads, before + 1);
}

#[tokio::test]
async fn a_clock_that_cannot_be_followed_is_named_with_its_distance() {
    let script = |date: &'static str| {
        move |_: &Asked| {
            let body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>";
            vec![Act::Send(response(403, &[("date", date)], body))]
        }
    };
    let server = Server::start(script("Tue, 01 Jan 2075 00:00:00 GMT")).await;
    let endpoint = format!("http://{}", server.address);
    let vars = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "AKID"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    let uri = uri("s3://bucket/");
    let store = origins(settings(&vars)).open(&uri).unwrap();
    let error = store.list(uri.key(), 9).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Denied, 2), "{error}");
    let shown = error.to_string();
    let seconds = shown
        .split("the origin's clock is ")
        .nth(1)
        .and_then(|rest| rest.strip_suffix(" s ahead of this machine's")?.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| seconds > 1_000_000_000), "{shown}");
}

#[tokio::test]
async fn azure_gets_another_token_when_its_own_is_refused() {
    let origin = AzureOrigin::start(AzureOptions::default()).await;
    origin.put("c", "o", content());
    let tokens = Server::start(|asked: &Asked| {
        let body = format!("{{\"access_token\":\"{TOKEN}{}\",\"expires_in\":3600}}", asked.number);
        vec![Act::Send(response(200, &[], body.as_bytes()))]
    })
    .await;
    let (endpoint, authority) = (origin.endpoint(), format!("http://{}", tokens.address));
    let vars = [
        ("AZURE_STORAGE_ENDPOINT", endpoint.as_str()),
        ("AZURE_STORAGE_ACCOUNT_NAME", origin.account()),
        ("AZURE_AUTHORITY_HOST", authority.as_str()),
        ("AZURE_TENANT_ID", "t"),
        ("AZURE_CLIENT_ID", "i"),
        ("AZURE_CLIENT_SECRET", SECRET),
    ];
    let uri = uri("az://c/o");
    let store = origins(settings(&vars)).open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    assert_eq!(tokens.asked().len(), 1);
    let expired = Fault::ErrorCode { status: 401, code: "InvalidAuthenticationInfo" };
    origin.fault(FaultRule::new("o", expired).nth(1));
    reads(&*store, &meta).await;
    assert_eq!((tokens.asked().len(), origin.counts("o").gets), (2, 2));
    // A key of the settings is what it is.
    let keyed = origin.env();
    let keyed: Vec<(&str, &str)> = keyed.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let store = origins(settings(&keyed)).open(&uri).unwrap();
    origin.fault(FaultRule::new("o", Fault::Status { code: 401, retry_after: None }).on(Op::Head));
    let error = store.head(&meta.key).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Unauthenticated, 1));
}

#[tokio::test(start_paused = true)]
async fn a_managed_identity_that_hangs_is_waited_for_two_seconds() {
    let hole = BlackHole::open();
    let endpoint = format!("http://{}/msi", hole.address());
    let vars = [("AZURE_STORAGE_ACCOUNT_NAME", "a"), ("AZURE_MSI_ENDPOINT", endpoint.as_str())];
    let uri = uri("az://c/o");
    let begun = Instant::now();
    let error = origins(settings(&vars)).open(&uri).unwrap().head(uri.key()).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Unauthenticated, 1));
    assert!(error.to_string().contains("did not answer within 2 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(2100));
}

#[tokio::test]
async fn where_credentials_come_from_is_told_of_opened_and_of_configured_origins() {
    let origin = Arc::new(s3().await);
    let (service, given) = metadata(&origin).await;
    let mut settings = of_instance(&origin, &service);
    let block = |prefix: &str, anonymous| OriginBlock {
        prefix: prefix.to_owned(),
        account: Some("account".to_owned()),
        anonymous,
        ..Default::default()
    };
    settings.origins = vec![
        block("s3://bucket/", false),
        block("s3://public/", true),
        block("az://box/", true),
        block("http://web.example/", false),
        block("s3://", false),
    ];
    let told = origins(settings).credentials().await;
    let names: Vec<_> = told.iter().map(|standing| standing.origin.as_str()).collect();
    assert_eq!(names, ["az://box", "s3://bucket", "s3://public"]);
    assert!(told.iter().all(|standing| standing.problem.is_none()), "{told:?}");
    assert!(told[0].source.starts_with("anonymous") && told[2].source.starts_with("anonymous"));
    assert_eq!(told[1].source, "temporary ones, of a service");
    let left = told[1].expires_in.unwrap();
    assert!(
        left > Duration::from_secs(5 * 3600) && left <= Duration::from_secs(6 * 3600),
        "{left:?}"
    );
    assert_eq!(given.load(Ordering::Relaxed), 1);
    assert_eq!(origin.total().gets, 0, "the origin is not asked");

    let mut none = for_origin(&origin, &[]);
    none.origins = vec![block("s3://bucket/", false)];
    let told = origins(none).credentials().await;
    let why = told[0].problem.as_ref().unwrap();
    assert!(why.contains("none in the environment") && why.contains("disabled"), "{why}");
}

#[tokio::test]
async fn no_key_and_no_token_is_shown_anywhere() {
    let log = log();
    let origin = Arc::new(s3().await);
    let (metadata, _) = metadata(&origin).await;
    let settings = of_instance(&origin, &metadata);
    let origins = origins(settings.clone());
    let uri = uri("s3://bucket/o");
    let store = origins.open(&uri).unwrap();
    let meta = store.head(uri.key()).await.unwrap();
    let mut shown = format!("{settings:?} {origins:?} {store:?} {:?}", origins.endpoints());
    shown.push_str(&format!("{:?}", origins.credentials().await));
    for (status, code) in [(400, "ExpiredToken"), (403, "SignatureDoesNotMatch"), (500, "X")] {
        let fault = origin.fault(FaultRule::new("o", Fault::ErrorCode { status, code }));
        let error = store.read(&request(&meta, 0..9), &mut [0; 9]).await.unwrap_err();
        fault.remove();
        shown.push_str(&format!("{error} {error:?} {:?}", std::error::Error::source(&error)));
    }
    // Services that give something else than keys, with keys in it.
    let table = [
        (200, format!("{{\"AccessKeyId\":\"{SECRET}\"}}")),
        (200, format!("not JSON: {SECRET}")),
        (500, format!("<Code>{SECRET}</Code> {TOKEN}")),
    ];
    for (code, body) in table {
        let service =
            Server::start(move |_| vec![Act::Send(response(code, &[], body.as_bytes()))]).await;
        let url = service.url(&format!("x?{TOKEN}"));
        let error =
            refused(for_origin(&origin, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)])).await;
        assert_eq!(error.kind, OriginErrorKind::Unauthenticated, "{error}");
        shown.push_str(&format!("{error} {error:?} {:?}", std::error::Error::source(&error)));
    }
    shown.push_str(&log.text());
    assert!(shown.contains("attempt failed"), "nothing was logged");
    for canary in [SECRET, TOKEN] {
        assert!(!shown.contains(canary), "{}", shown.split(canary).next().unwrap_or_default());
    }
}
