//! Collects the operations of a JSON patch. Each is carried out on a copy at once, so that the next is made for the
//! document it will meet; each guards its place by a test.

use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, TestOperation,
    jsonptr::{PointerBuf, Token},
};
use serde_json::{Value, json};

use super::Refusal;

pub(super) struct Patcher<'a> {
    before: &'a Value,
    now: Value,
    operations: Vec<PatchOperation>,
    failed: Option<String>,
}

impl<'a> Patcher<'a> {
    pub(super) fn new(before: &'a Value) -> Self {
        Self { before, now: before.clone(), operations: Vec::new(), failed: None }
    }

    /// The value at `path` as it is by now; null counts as absent.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Value> {
        pointer(path).resolve(&self.now).ok().filter(|value| !value.is_null())
    }

    /// Fails the patch unless `value` stands at `path`.
    pub(super) fn test(&mut self, path: &[&str], value: Value) {
        self.push(PatchOperation::Test(TestOperation { path: pointer(path), value }));
    }

    /// Sets the member of an object, or inserts into an array.
    pub(super) fn add(&mut self, path: &[&str], value: Value) {
        self.push(PatchOperation::Add(AddOperation { path: pointer(path), value }));
    }

    pub(super) fn remove(&mut self, path: &[&str]) {
        self.push(PatchOperation::Remove(RemoveOperation { path: pointer(path) }));
    }

    /// Makes sure of a container to add to: `empty` is put where nothing or null stands.
    pub(super) fn ensure(&mut self, path: &[&str], empty: Value) {
        if self.at(path).is_none() {
            self.add(path, empty);
        }
    }

    /// Removes the items of the array at `/spec/<list>` that have one of `names`. From the end, so that the places of
    /// those before stay.
    pub(super) fn remove_named(&mut self, list: &str, names: &[&str]) {
        let items = self.at(&["spec", list]).and_then(Value::as_array);
        let named = items.into_iter().flatten().enumerate().filter_map(|(index, item)| {
            let name = item.get("name")?.as_str().filter(|name| names.contains(name))?;
            Some((index.to_string(), name.to_owned()))
        });
        for (index, name) in named.collect::<Vec<_>>().into_iter().rev() {
            self.test(&["spec", list, &index, "name"], json!(name));
            self.remove(&["spec", list, &index]);
        }
    }

    /// The patch; empty where the document ends as it began. Only a document that is no pod cannot be patched: an array
    /// where an object belongs.
    pub(super) fn finish(self) -> Result<Patch, Refusal> {
        if let Some(why) = self.failed {
            return Err(Refusal::unreadable(&why));
        }
        Ok(if self.now == *self.before { Patch::default() } else { Patch(self.operations) })
    }

    fn push(&mut self, operation: PatchOperation) {
        match json_patch::patch(&mut self.now, std::slice::from_ref(&operation)) {
            Ok(()) => self.operations.push(operation),
            Err(error) => self.failed = Some(error.to_string()),
        }
    }
}

fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().map(|token| Token::new(*token)))
}
