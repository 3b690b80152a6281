//! Names of revisions: what a request means by one, and the verbs about them.
//!
//! A request names a URI or an alias. What is both written without a scheme and no alias is no URI
//! either. From here on an alias is its URI with the revision given, so that whatever is asked of URIs
//! later (who may read them, say) is asked of those of aliases too.

use std::sync::Arc;

use forebay_origin::OriginUri;
use forebay_proto::pb::set_alias_response::Event;
use forebay_proto::{AliasName, Failure, Reason, RollbackRule, pb};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use super::{Context, Shared, client_gone, convert, deadline, shown_uri};
use crate::admission::Lane;
use crate::alias::{By, Done, Ended, Record, RuleState, Step, View, Work, set, wall_clock};
use crate::deadline::Deadline;
use crate::error::stopping;
use crate::flight::Waiter;
use crate::load::{Expected, Given, LoadRequest};
use crate::plan::Selection;
use crate::resolve::Manifest;
use crate::timeline::Timeline;
use crate::workload::Workload;

/// What a request is about.
pub(super) struct Target {
    /// As given, or that of the alias.
    pub(super) uri: String,
    /// Without a query, in canonical form.
    pub(super) shown_uri: String,
    /// The revision, if it was an alias.
    pub(super) given: Option<Given>,
}

/// What a text names.
pub(super) fn target(shared: &Shared, text: String) -> Result<Target, Failure> {
    let Ok(name) = AliasName::parse(&text) else {
        let shown_uri = shared.loadable(&text)?;
        return Ok(Target { uri: text, shown_uri, given: None });
    };
    let domain = &shared.stages.domain;
    let given = shared.aliases.given(&name)?;
    // A name of what others load only is none here.
    let Some(given) = given.filter(|given| domain.may_load(given.manifest.uri())) else {
        let message = format!("{name} is no URI, and no alias of this node has that name");
        return Err(Failure::new(Reason::BadUri, message).at_stage("resolve"));
    };
    let uri = given.manifest.uri().to_owned();
    domain.uses(&uri);
    Ok(Target { shown_uri: uri.clone(), uri, given: Some(given) })
}

/// The URI that a text names, in canonical form.
pub(super) fn named(shared: &Shared, text: &str) -> Result<String, Failure> {
    match AliasName::parse(text) {
        Ok(_) => Ok(target(shared, text.to_owned())?.shown_uri),
        Err(_) => shown_uri(text),
    }
}

/// Whether an alias is a domain's business: it may load what the name stands for, and stood for
/// before, which it may be rolled back to.
pub(super) fn concerns(shared: &Shared, record: &Record) -> bool {
    let targets = [Some(&record.current), record.previous.as_ref()];
    targets.into_iter().flatten().all(|of| shared.stages.domain.may_load(&of.uri))
}

fn is_ours(shared: &Shared, view: &View) -> bool {
    concerns(shared, &view.record)
}

/// What a name is to the domain.
enum Standing {
    /// Free, or one that it may change.
    Own,
    /// It may load it, and another domain set it.
    Shown,
    /// None of its business.
    Foreign,
}

fn standing(shared: &Shared, name: &AliasName) -> Result<Standing, Failure> {
    let views = shared.aliases.list(None)?;
    let taken = views.iter().find(|view| view.record.name == name.as_str());
    Ok(match taken {
        Some(view) if !is_ours(shared, view) => Standing::Foreign,
        Some(view) if !shared.stages.domain.may_change(&view.record.domain) => Standing::Shown,
        _ => Standing::Own,
    })
}

/// An error where a name is none to the domain, or where it may not do more with it than load it.
fn check(shared: &Shared, name: &AliasName, to_change: bool) -> Result<(), Failure> {
    match standing(shared, name)? {
        Standing::Foreign => {
            Err(Failure::new(Reason::AliasUnknown, format!("there is no alias {name}")))
        }
        Standing::Shown if to_change => {
            let message = format!("another domain set the alias {name}, and only it may change it");
            Err(Failure::new(Reason::UriNotAllowed, message))
        }
        Standing::Own | Standing::Shown => Ok(()),
    }
}

/// What a request is about, as a manifest; of an alias nothing is asked.
pub(super) async fn manifest_of(
    shared: &Shared,
    target: Target,
    deadline: Deadline,
) -> Result<Arc<Manifest>, Failure> {
    if let Some(given) = target.given {
        return Ok(given.manifest);
    }
    let permit = shared.stages.admission.look_up()?;
    let terms = Waiter { lane: Lane::Interactive, deadline }.terms();
    Ok(shared.stages.resolver.resolve(&permit, &target.uri, &terms).await?)
}

/// A load has ended: what that says of its alias, and what its alias says of that.
pub(super) fn ended(
    shared: &Shared,
    request: &LoadRequest,
    opened: Instant,
    outcome: Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(given) = &request.given else { return outcome };
    let measured = match &outcome {
        Ok(()) => given.took(opened).map(|took| Ended::Well(took.as_secs_f64())),
        Err(failure) => Ended::of(failure),
    };
    if let Some(measured) = measured.filter(|_| given.is_current()) {
        shared.aliases.ended(given, measured, Instant::now());
    }
    outcome.map_err(|failure| given.told(failure))
}

/// What an alias says of a failure.
pub(super) fn told(request: &LoadRequest, failure: Failure) -> Failure {
    match &request.given {
        Some(given) => given.told(failure),
        None => failure,
    }
}

/// One `SetAlias`.
pub(super) async fn set_alias(
    shared: &Arc<Shared>,
    context: Context,
    asked: pb::SetAliasRequest,
    out: &mpsc::Sender<Result<pb::SetAliasResponse, Status>>,
) -> Result<(), Failure> {
    let name = AliasName::parse(&asked.name)?;
    let rule = asked.rule.as_ref().map(RollbackRule::receive).transpose()?;
    let own = || match standing(shared, &name)? {
        Standing::Own => Ok(()),
        Standing::Shown | Standing::Foreign => {
            let message = format!("the name {name} is taken on this node; give another one");
            Err(Failure::new(Reason::UriNotAllowed, message))
        }
    };
    own()?;
    if shared.draining.is_cancelled() {
        return Err(stopping("the daemon is stopping"));
    }
    let target = target(shared, asked.uri)?;
    if OriginUri::parse(&target.uri).is_ok_and(|uri| uri.has_query()) {
        let message = "an alias cannot stand for a URI with a query: a signature in it expires, and \
                       is not kept; give one without, and the daemon credentials that may read it";
        return Err(Failure::new(Reason::BadRequest, message).at_stage("resolve"));
    }
    let signed = (&name, shared.stages.domain.signature());
    let setting = shared.aliases.begin(signed, &target.shown_uri)?;
    // Another domain may have set it meanwhile; from here on nobody else does.
    own()?;
    let resolving = context.deadline.cut(manifest_of(shared, target, context.deadline));
    let manifest = resolving.await.map_err(|_expired| deadline())??;
    let given = Given::new(name.to_string(), 0, Arc::clone(&manifest));
    let request = stored(context, given)?;
    let timeline = Arc::new(Timeline::of_trace(context.opened, context.trace));
    let (tell, mut heard) = mpsc::channel::<Step>(1);
    let (stages, sessions) = (&shared.stages, &shared.sessions);
    let work =
        Work { setting: &setting, stages, sessions, request: &request, timeline: &timeline, tell };
    let setting_it = set(work, &manifest, rule);
    let telling = async {
        while let Some(step) = heard.recv().await {
            send(out, Event::Progress(progress(&step))).await?;
        }
        Ok::<(), Failure>(())
    };
    let (done, heard) = tokio::join!(setting_it, telling);
    let done = done?;
    heard?;
    tracing::info!(
        alias = %name,
        uri = request.shown_uri,
        revision = done.view.record.current.shown(),
        switched = done.switched,
        checked_bytes = done.checked_bytes,
        "an alias is set"
    );
    send(out, Event::Report(report(&done, context.opened))).await
}

/// How the revision of an alias is stored: as a prefetch of everything.
fn stored(context: Context, given: Given) -> Result<LoadRequest, Failure> {
    let uri = given.manifest.uri().to_owned();
    Ok(LoadRequest {
        shown_uri: uri.clone(),
        uri,
        given: Some(given),
        load_id: convert::load_id(String::new())?,
        lane: Lane::Prefetch,
        selection: Selection::default(),
        device: None,
        placed: None,
        peer: context.peer,
        deadline: context.deadline,
        expected: Expected::default(),
        workload: Workload::default(),
    })
}

async fn send(
    out: &mpsc::Sender<Result<pb::SetAliasResponse, Status>>,
    event: Event,
) -> Result<(), Failure> {
    let message = pb::SetAliasResponse { event: Some(event) };
    out.send(Ok(message)).await.map_err(|_closed| client_gone())
}

fn progress(step: &Step) -> pb::SetAliasProgress {
    pb::SetAliasProgress {
        step: step.name.to_owned(),
        revision: step.manifest.revision().to_string(),
        done_bytes: step.done_bytes,
        total_bytes: step.manifest.bytes(),
    }
}

fn report(done: &Done, opened: Instant) -> pb::SetAliasReport {
    pb::SetAliasReport {
        alias: Some(alias(&done.view)),
        switched: done.switched,
        bytes_by_tier: Some(convert::tiers(done.tiers)),
        origin_bytes: done.origin_bytes,
        checked_bytes: done.checked_bytes,
        wall_seconds: opened.elapsed().as_secs_f64(),
    }
}

/// One `Rollback`.
pub(super) async fn rollback(
    shared: &Shared,
    context: Context,
    asked: pb::RollbackRequest,
) -> Result<pb::RollbackResponse, Failure> {
    let name = AliasName::parse(&asked.name)?;
    check(shared, &name, true)?;
    let rolling = shared.aliases.roll_back(name, By::Caller, None, wall_clock());
    let view = context.deadline.cut(rolling).await.map_err(|_expired| deadline())??;
    let wall_seconds = context.opened.elapsed().as_secs_f64();
    tracing::info!(
        alias = view.record.name,
        uri = view.record.current.uri,
        revision = view.record.current.shown(),
        wall_seconds,
        "an alias is rolled back"
    );
    Ok(pb::RollbackResponse { alias: Some(alias(&view)), wall_seconds })
}

/// The aliases, or one of them.
pub(super) fn list(shared: &Shared, name: &str) -> Result<pb::ListAliasesResponse, Failure> {
    let name = match name.is_empty() {
        true => None,
        false => Some(AliasName::parse(name)?),
    };
    name.iter().try_for_each(|name| check(shared, name, false))?;
    let views = shared.aliases.list(name.as_ref())?;
    let ours = views.iter().filter(|view| is_ours(shared, view));
    Ok(pb::ListAliasesResponse { aliases: ours.map(alias).collect() })
}

/// The aliases without their history.
pub(super) fn glance(shared: &Shared) -> Vec<pb::Alias> {
    let views = shared.aliases.list(None).unwrap_or_default();
    let ours = views.iter().filter(|view| is_ours(shared, view));
    ours.map(|view| pb::Alias { history: Vec::new(), ..alias(view) }).collect()
}

/// One `RemoveAlias`.
pub(super) async fn remove(
    shared: &Shared,
    context: Context,
    asked: pb::RemoveAliasRequest,
) -> Result<pb::RemoveAliasResponse, Failure> {
    let name = AliasName::parse(&asked.name)?;
    check(shared, &name, true)?;
    let removing = context.deadline.cut(shared.aliases.remove(name.clone()));
    let revisions = removing.await.map_err(|_expired| deadline())??;
    tracing::info!(alias = %name, revisions, "an alias is removed");
    Ok(pb::RemoveAliasResponse { revisions })
}

fn alias(view: &View) -> pb::Alias {
    let View { record, revisions: [current, previous], verdict, setting } = view;
    let revision = |target: &crate::alias::Target,
                    (nvme_bytes, damaged): &(u64, Option<String>)| {
        pb::AliasRevision {
            uri: target.uri.clone(),
            revision: target.shown(),
            bytes: target.bytes,
            object_count: target.objects,
            nvme_bytes: *nvme_bytes,
            damaged: damaged.clone().unwrap_or_default(),
        }
    };
    let rule = record.rule.as_ref();
    let acted = rule.filter(|rule| rule.state == RuleState::Acted).and_then(|rule| rule.acted_at);
    let event = |event: &crate::alias::Event| pb::AliasEvent {
        unix_seconds: event.at.as_secs_f64(),
        kind: event.kind.as_str().to_owned(),
        uri: event.uri.clone(),
        revision: format!("b3:{}", event.revision),
        from_revision: event.from.as_ref().map(|from| format!("b3:{from}")).unwrap_or_default(),
        why: event.why.clone(),
    };
    pb::Alias {
        name: record.name.clone(),
        current: Some(revision(&record.current, current)),
        previous: record.previous.as_ref().map(|target| revision(target, previous)),
        since_unix_seconds: record.since.as_secs_f64(),
        rule: rule.and_then(|rule| rule.rule()).map(|rule| rule.to_wire()),
        rule_state: rule.map(|rule| rule.state.as_str().to_owned()).unwrap_or_default(),
        rule_loads: verdict.map_or(0, |verdict| verdict.loads),
        rule_value: verdict.and_then(|verdict| verdict.value).or(acted),
        history: record.history.iter().map(event).collect(),
        setting: setting.clone().unwrap_or_default(),
    }
}
