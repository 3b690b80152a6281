//! A second opinion on the protocol: moto, an S3 that nobody here wrote, from the Python package
//! index. Its environment is kept under `target/tmp`; making it takes minutes, so that a run of the
//! slow tests makes it, and every run after that uses it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use forebay_origin::{OriginErrorKind, OriginSettings, OriginStore, Origins};
use forebay_testkit::{Content, checksums};

use crate::{origins, pattern, quick, request, uri, whole};

const PACKAGE: &str = "moto[s3,iam,server]==5.2.5";
const BYTES: usize = 300_000;

/// Puts two objects, and makes a user with an access key: six actions that need none.
const SETUP: &str = "\
import boto3, json, sys
make = lambda service: boto3.client(service, endpoint_url=sys.argv[1], region_name='us-east-1',
    aws_access_key_id='x', aws_secret_access_key='y')
s3, iam = make('s3'), make('iam')
s3.create_bucket(Bucket='bucket')
s3.put_object(Bucket='bucket', Key='p/a b+c', Body=open(sys.argv[2], 'rb').read())
s3.put_object(Bucket='bucket', Key='sums', Body=open(sys.argv[2], 'rb').read(),
    ChecksumAlgorithm='SHA256')
iam.create_user(UserName='u')
allow = {'Effect': 'Allow', 'Action': '*', 'Resource': '*'}
iam.put_user_policy(UserName='u', PolicyName='all',
    PolicyDocument=json.dumps({'Version': '2012-10-17', 'Statement': [allow]}))
key = iam.create_access_key(UserName='u')['AccessKey']
print(key['AccessKeyId'], key['SecretAccessKey'])
";
/// Prints how many uploads are neither finished nor given up.
const UNFINISHED: &str = "\
import boto3, sys
s3 = boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1',
    aws_access_key_id=sys.argv[2], aws_secret_access_key=sys.argv[3])
print(len(s3.list_multipart_uploads(Bucket='bucket').get('Uploads', [])))
";
const UNSIGNED_ACTIONS: &str = "6";

/// Runs a command; what it printed, or why it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", said.trim_end().lines().last().unwrap_or("it says nothing")))
}

/// The folder of moto's programs.
fn installed() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto-5.2.5");
    let programs = folder.join("bin");
    if programs.join("complete").exists() {
        return Ok(programs);
    }
    if std::env::var_os("FOREBAY_SLOW_TESTS").is_none_or(|value| value != "1") {
        return Err("it is not installed yet, which FOREBAY_SLOW_TESTS=1 does".to_owned());
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let pip = ["install", "--quiet", "--disable-pip-version-check", "--no-input", "--retries=1"];
    run(Command::new(programs.join("pip")).args(pip).args(["--timeout=15", PACKAGE]))?;
    std::fs::write(programs.join("complete"), "").map_err(|error| error.to_string())?;
    Ok(programs)
}

struct Moto {
    process: Child,
    url: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        // A process that has ended already cannot be killed, and need not be.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Moto {
    fn start(programs: &Path) -> Self {
        let mut process = Command::new(programs.join("moto_server"))
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", UNSIGNED_ACTIONS)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let url = lines.by_ref().map(Result::unwrap).find_map(|line| {
            let (_, url) = line.split_once("Running on ")?;
            Some(url.trim().to_owned())
        });
        // Its log goes on: a pipe that nobody reads would stop it.
        std::thread::Builder::new()
            .name("moto's log".to_owned())
            .spawn(move || lines.for_each(drop))
            .unwrap();
        Self { process, url: url.expect("moto says where it runs") }
    }
}

/// Writes objects of one part and of several, replaces one, gives one up and removes them.
async fn writes(origins: &Origins, store: &dyn OriginStore) {
    let at = uri("s3://bucket/w/");
    let sink = origins.open_sink(&at).unwrap();
    let key = |name: &str| at.key().join(name).unwrap();
    for (name, bytes) in [("empty", 0), ("small", 1000), ("parts", 3 * (8 << 20) + 17)] {
        for round in 0..2 {
            let content = pattern(bytes + round);
            let mut upload = sink.upload(&key(name), content.len() as u64).await.unwrap();
            for piece in content.chunks(5 << 20) {
                upload.write(piece.to_vec().into()).await.unwrap();
            }
            let pin = upload.finish().await.unwrap();
            let meta = store.head(&key(name)).await.unwrap();
            assert_eq!((meta.bytes, meta.pin.etag.clone()), (content.len() as u64, pin.etag));
            assert_eq!(whole(store, &meta).await, content, "{name}");
            assert_eq!(meta.checksums.md5.is_some(), bytes < 8 << 20, "a tag of parts is no MD5");
        }
    }
    sink.put(&key("a b+c"), pattern(77).into()).await.unwrap();
    let mut upload = sink.upload(&key("given-up"), 1 << 30).await.unwrap();
    upload.write(pattern(20 << 20).into()).await.unwrap();
    drop(upload);
    origins.cleared().await;
    let found = store.list(at.key(), 9).await.unwrap();
    let names: Vec<&str> = found.iter().map(|meta| meta.key.file_name()).collect();
    assert_eq!(names, ["a b+c", "empty", "parts", "small"]);
    for meta in &found {
        sink.delete(&meta.key).await.unwrap();
    }
    sink.delete(&key("given-up")).await.unwrap();
    assert!(store.list(at.key(), 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_real_s3_understands_what_it_is_asked() {
    let programs = match installed() {
        Ok(programs) => programs,
        Err(why) => {
            println!("skipped: moto cannot be had: {why}");
            return;
        }
    };
    let moto = Moto::start(&programs);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("object");
    std::fs::write(&file, pattern(BYTES)).unwrap();
    let mut setup = Command::new(programs.join("python"));
    let keys = run(setup.args(["-c", SETUP, &moto.url]).arg(&file)).unwrap();
    let (id, secret) = keys.trim().split_once(' ').unwrap();
    let settings = |id: &str, secret: &str| OriginSettings {
        env: [
            ("AWS_ENDPOINT_URL", moto.url.as_str()),
            ("AWS_ACCESS_KEY_ID", id),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
        ..quick()
    };

    let prefix = uri("s3://bucket/p/");
    let store = origins(settings(id, secret)).open(&prefix).unwrap();
    let found = store.list(prefix.key(), 9).await.unwrap();
    let [meta] = &found[..] else { panic!("{found:?}") };
    assert_eq!((meta.key.as_str(), meta.bytes), ("p/a b+c", BYTES as u64));
    assert_eq!(store.head(&meta.key).await.unwrap().pin.etag, meta.pin.etag);
    assert_eq!(whole(&*store, meta).await, pattern(BYTES));
    let mut part = vec![0; 1000];
    let record = store.read(&request(meta, 77_000..78_000), &mut part).await.unwrap();
    assert_eq!((part, record.attempts), (pattern(BYTES)[77_000..78_000].to_vec(), 1));

    let right = checksums(&Content::bytes(pattern(BYTES)));
    let told = store.head(uri("s3://bucket/sums").key()).await.unwrap().checksums;
    assert_eq!((told.sha256, told.md5), (right.sha256, right.md5), "both are those of the bytes");
    assert_eq!(store.head(&meta.key).await.unwrap().checksums.sha256, None, "it was not asked to");
    writes(&origins(settings(id, secret)), &*store).await;
    let mut unfinished = Command::new(programs.join("python"));
    let left = run(unfinished.args(["-c", UNFINISHED, &moto.url, id, secret])).unwrap();
    assert_eq!(left.trim(), "0", "the upload that was dropped is forgotten");

    let mut other = meta.clone();
    other.pin.etag = Some("\"00000000000000000000000000000000\"".to_owned());
    let error = store.read(&request(&other, 0..10), &mut [0; 10]).await.unwrap_err();
    assert_eq!((error.kind, error.status), (OriginErrorKind::Changed, Some(412)), "{error}");

    for (id, secret, code) in
        [(id, "wrong", "SignatureDoesNotMatch"), ("AKIANOBODY", secret, "InvalidAccessKeyId")]
    {
        let store = origins(settings(id, secret)).open(&prefix).unwrap();
        let error = store.list(prefix.key(), 9).await.unwrap_err();
        assert_eq!((error.kind, error.status), (OriginErrorKind::Denied, Some(403)), "{error}");
        assert!(error.attempts == 1 && error.to_string().contains(code), "{error}");
    }
}
