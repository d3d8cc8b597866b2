//! Answers that streams share: each is worked out once for all callers with the same view, and so is what leads from one
//! answer to the next. A stream that keeps up costs the size of the change, not that of the service.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use hauberk_mesh::TrustDomain;
use linkerd2_proxy_api::destination::Update;

use crate::{
    answer::Answer,
    choice::{Caller, View},
    messages::updates,
    subject::Subject,
};

/// One subject, and what is said of it to whom.
#[derive(Debug)]
pub struct Resolved {
    subject: Option<Subject>,
    /// At most one for each node, or zone, of those who ask.
    told: Mutex<HashMap<View, Arc<Told>>>,
}

/// One answer, and how to come to it.
#[derive(Debug)]
pub struct Told {
    answer: Answer,
    /// The answer that most streams come from, and the way.
    step: Mutex<Option<Step>>,
}

/// From an answer, the messages that lead to the next.
type Step = (Weak<Told>, Arc<[Update]>);

impl Resolved {
    pub(crate) fn new(subject: Option<Subject>) -> Arc<Self> {
        Arc::new(Self { subject, told: Mutex::default() })
    }

    /// Who it is, if anybody.
    pub fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref()
    }

    /// What `caller` is told.
    pub fn told(&self, caller: &Caller, domain: &TrustDomain) -> Arc<Told> {
        let view = View::of(self.subject(), caller);
        let mut told = self.told.lock().expect("no code panics while it makes an answer");
        let answer = |view: &View| Answer::of(self.subject(), view, domain);
        told.entry(view).or_insert_with_key(|view| Arc::new(Told::new(answer(view)))).clone()
    }
}

impl Told {
    fn new(answer: Answer) -> Self {
        Self { answer, step: Mutex::default() }
    }

    /// What is said.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// What has to be sent to a caller that was told `sent`.
    pub fn since(self: &Arc<Self>, sent: Option<&Arc<Self>>) -> Arc<[Update]> {
        // The first answer of a stream is as large as the service: it is not kept for others.
        let Some(sent) = sent else { return updates(None, &self.answer).into() };
        if Arc::ptr_eq(sent, self) {
            return Arc::default();
        }
        let mut step = self.step.lock().expect("no code panics while it compares answers");
        if let Some((from, way)) = &*step
            && from.upgrade().is_some_and(|from| Arc::ptr_eq(&from, sent))
        {
            return way.clone();
        }
        let way: Arc<[Update]> = updates(Some(&sent.answer), &self.answer).into();
        *step = Some((Arc::downgrade(sent), way.clone()));
        way
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Index, Query, testing::MESH};
    use hauberk_mesh::MeshFile;

    fn resolved(yaml: &str) -> Arc<Resolved> {
        let domain = TrustDomain::default();
        let index = Index::from_mesh(&MeshFile::parse(yaml).expect("a valid mesh"), &domain);
        let query = Query::parse("web.shop", &domain).expect("valid");
        Resolved::new(index.subject(&query.topic()))
    }

    #[test]
    fn streams_that_keep_up_share_answers_and_the_steps_between() {
        let (caller, domain) = (Caller::default(), TrustDomain::default());
        let before = resolved(MESH);
        let sent = before.told(&caller, &domain);
        assert!(Arc::ptr_eq(&sent, &before.told(&caller, &domain)));
        assert!(sent.since(Some(&sent)).is_empty());
        let after = resolved(&MESH.replace("[web-0, web-1]", "[web-1]")).told(&caller, &domain);
        let way = after.since(Some(&sent));
        assert_eq!(way.len(), 1);
        assert!(Arc::ptr_eq(&way, &after.since(Some(&sent))));
        let late = resolved(&MESH.replace("[web-0, web-1]", "[]")).told(&caller, &domain);
        assert_eq!(after.since(Some(&late)).len(), 1, "who comes from elsewhere goes another way");
        assert_eq!(after.since(None).len(), 1);
    }
}
