//! `cargo demo`: the main job, end to end, on this machine.
//!
//! An embedded S3 origin (signatures, ranges, `If-Match`) serves a generated sharded bf16
//! checkpoint. A real daemon runs as a child process, a real client loads: cold (every byte from
//! the origin), warm (every byte from RAM), and once more hashing every byte that it mapped, which
//! has to agree with what the origin holds. Everything lies in one temporary directory and ends
//! with the run.

use std::time::Duration;

use forebay_client::model::Report;
use forebay_client::{Client, Endpoint, LoadRequest};
use forebay_testkit::{Checkpoint, CheckpointSpec, S3Options, S3Origin, checkpoint};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::Outcome;
use crate::node::{self, until_populated};
use crate::process::DaemonProcess;

const BUCKET: &str = "demo";
const PREFIX: &str = "llama-demo";
const SHARDS: usize = 4;
const SEED: u64 = 20_261_123;

/// Runs the demo with a checkpoint of about `bytes`.
///
/// # Errors
/// If anything fails, or a digest differs.
pub fn run(bytes: u64) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(demo(bytes))
}

async fn demo(bytes: u64) -> Outcome<()> {
    let started = Instant::now();
    let made = checkpoint(CheckpointSpec::new(SEED, bytes).shards(SHARDS));
    let origin = S3Origin::start(S3Options::default()).await;
    origin.put_checkpoint(BUCKET, &format!("{PREFIX}/"), &made);
    say(format_args!(
        "checkpoint  s3://{BUCKET}/{PREFIX}: {} in {} objects, {} tensors (generated, seed {SEED})",
        shown_bytes(made.bytes()),
        made.files().len(),
        made.tensors().count()
    ));
    let daemon = start_daemon(&origin, bytes)?;
    let client = Client::connect(Endpoint::unix(&daemon.socket())?).await?;
    let populated = until_populated(&client).await?;
    say(format_args!(
        "daemon      pid {}, {} of RAM populated and locked in {:.2} s, {}",
        daemon.pid(),
        shown_bytes(populated),
        started.elapsed().as_secs_f64(),
        daemon.socket().display()
    ));

    let cold = load(&client, "cold").await?;
    let served = origin.total().body_bytes;
    let warm = load(&client, "warm").await?;
    if warm.bytes_by_tier.origin != 0 {
        return Err("the warm load went to the origin".into());
    }
    say(format_args!(
        "\norigin      sent {served} bytes until then; the cold load's report says {} (checkpoint and \
         headers), the warm one's {}",
        cold.origin_bytes, warm.origin_bytes
    ));
    prove(&client, &made).await?;

    let peak = daemon.peak_resident_bytes()?;
    drop(client);
    stop(daemon)?;
    say(format_args!(
        "daemon      peak resident {}, stopped; everything is cleaned up ({:.1} s in all)",
        shown_bytes(peak),
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn start_daemon(origin: &S3Origin, bytes: u64) -> Outcome<DaemonProcess> {
    Ok(node::daemon(bytes, &[])?.env(origin.env()).start()?)
}

fn stop(mut daemon: DaemonProcess) -> Outcome<()> {
    let status = daemon.stop()?;
    if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}").into()) }
}

/// Takes every tensor, as a server that copies them to its GPU would, and prints the report.
async fn load(client: &Client, name: &str) -> Outcome<Report> {
    let started = Instant::now();
    let mut load = client.load(LoadRequest::new(format!("s3://{BUCKET}/{PREFIX}"))).await?;
    let mut tensors = 0_u64;
    while let Some(tensor) = load.next_tensor().await? {
        tensors += 1;
        tensor.release();
    }
    let handed_over = started.elapsed();
    let report = load.finish().await?;
    print(name, &report, tensors, handed_over);
    Ok(report)
}

fn print(name: &str, report: &Report, tensors: u64, handed_over: Duration) {
    let rate = gigabytes_per_second(report.bytes, handed_over);
    let tiers = report.bytes_by_tier;
    say(format_args!(
        "\n{name:<11} {} and {tensors} tensors handed over in {:.1} ms: {rate:.2} GB/s",
        shown_bytes(report.bytes),
        handed_over.as_secs_f64() * 1e3
    ));
    say(format_args!(
        "  tiers     ram {}, nvme {}, origin {}; {} requests, {} retries",
        shown_bytes(tiers.ram),
        shown_bytes(tiers.nvme),
        shown_bytes(tiers.origin),
        report.attempts,
        report.retries
    ));
    say(format_args!(
        "  stage             queue s   service s   (sums over chunks, which overlap)"
    ));
    for stage in &report.stages {
        let (queue, service) = (stage.queue.as_secs_f64(), stage.service.as_secs_f64());
        say(format_args!("  {:<14} {queue:>10.4} {service:>11.4}", stage.stage));
    }
    let steps: Vec<String> = report
        .critical_path
        .iter()
        .map(|step| format!("{} {} {:.4}", step.stage, step.kind, step.time.as_secs_f64()))
        .collect();
    say(format_args!("  critical  {}", steps.join(", ")));
    say(format_args!(
        "  wall      {:.4} s, of which unattributed {:.4} s",
        report.wall.as_secs_f64(),
        report.unattributed.as_secs_f64()
    ));
}

/// Hashes every byte that is mapped, object by object, and compares with the origin's content.
async fn prove(client: &Client, made: &Checkpoint) -> Outcome<()> {
    let request = LoadRequest::new(format!("s3://{BUCKET}/{PREFIX}"));
    let mut load = client.load(request).await?;
    let mut hashers: std::collections::BTreeMap<String, Sha256> = Default::default();
    while let Some(piece) = load.next_piece().await? {
        hashers.entry(piece.key().to_owned()).or_default().update(piece.bytes());
    }
    load.finish().await?;
    for (key, content) in made.files() {
        let mapped = hashers.remove(key).unwrap_or_default().finalize();
        let mapped: String = mapped.iter().map(|byte| format!("{byte:02x}")).collect();
        if mapped != content.sha256() {
            return Err(
                format!("{key}: mapped {mapped}, the origin holds {}", content.sha256()).into()
            );
        }
        say(format_args!("proof       {mapped}  {key}"));
    }
    say(format_args!("proof       every byte mapped is what the origin holds"));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the demo talks to a person")]
fn say(line: std::fmt::Arguments<'_>) {
    println!("{line}");
}

#[expect(clippy::cast_precision_loss, reason = "for people, three digits")]
fn gigabytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e9 / time.as_secs_f64().max(1e-9)
}

#[expect(clippy::cast_precision_loss, reason = "for people, one digit")]
fn shown_bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
