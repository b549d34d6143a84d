//! The manifests as a cluster gets them: a kustomization rendered, by the few fields of its form that ours use. Any other is
//! refused, so that nothing is passed over.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Kinds that belong to no namespace.
const OF_CLUSTER: &[&str] = &["Namespace", "ClusterRole", "ClusterRoleBinding"];

/// The objects of a kustomization.
#[derive(Clone, Debug)]
pub struct Manifests(pub Vec<Value>);

impl Manifests {
    /// Renders a folder below `deploy/kubernetes`, with components of there.
    ///
    /// # Panics
    /// It cannot be rendered.
    pub fn render(folder: &str, components: &[&str]) -> Manifests {
        // This file is compiled in packages of the workspace, all of which are beside `deploy`.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
        let mut manifests = kustomization(&root.join(folder));
        for component in components {
            apply(&root.join("components").join(component), &mut manifests);
        }
        Manifests(manifests)
    }

    /// The objects of a kind.
    pub fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    /// The one of a kind.
    ///
    /// # Panics
    /// There is not exactly one.
    pub fn one(&self, kind: &str) -> &Value {
        let found: Vec<&Value> = self.of(kind).collect();
        let [one] = found[..] else { panic!("there are {} of kind {kind}", found.len()) };
        one
    }

    /// The pods' specification.
    pub fn pod(&self) -> &Value {
        &self.one("DaemonSet")["spec"]["template"]["spec"]
    }

    /// Its only container.
    pub fn container(&self) -> &Value {
        let containers = self.pod()["containers"].as_array().expect("containers are a list");
        assert_eq!(containers.len(), 1, "the agent is alone in its pod");
        &containers[0]
    }

    /// Its arguments.
    pub fn arguments(&self) -> Vec<String> {
        strings(&self.container()["args"])
    }

    /// All as one file of documents; JSON is YAML.
    pub fn text(&self) -> String {
        self.0.iter().map(|object| format!("---\n{object}\n")).collect()
    }
}

/// A list of strings.
pub fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
}

/// The documents of a file.
///
/// # Panics
/// It is no YAML.
pub fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn kustomization(folder: &Path) -> Vec<Value> {
    let mut objects = Vec::new();
    apply(folder, &mut objects);
    objects
}

/// Adds what a kustomization or a component has, and changes what it changes.
fn apply(folder: &Path, objects: &mut Vec<Value>) {
    let path = folder.join("kustomization.yaml");
    let fields: BTreeMap<String, Value> =
        serde_json::from_value(documents(&path).remove(0)).expect("a kustomization is a map");
    for name in fields.keys() {
        let known = ["apiVersion", "kind", "resources", "components", "namespace", "images", "patches"];
        assert!(known.contains(&name.as_str()), "`{}`: {name} is not rendered here", path.display());
    }
    let field = |name: &str| fields.get(name).cloned().unwrap_or(Value::Null);
    for resource in strings(&field("resources")) {
        let place: PathBuf = folder.join(resource);
        objects.extend(if place.is_dir() { kustomization(&place) } else { documents(&place) });
    }
    for component in strings(&field("components")) {
        apply(&folder.join(component), objects);
    }
    if let Some(namespace) = field("namespace").as_str() {
        for object in objects.iter_mut().filter(|o| !OF_CLUSTER.iter().any(|kind| o["kind"] == *kind)) {
            object["metadata"]["namespace"] = namespace.into();
        }
    }
    for image in field("images").as_array().into_iter().flatten() {
        for container in objects.iter_mut().filter_map(|o| o.pointer_mut("/spec/template/spec/containers/0")) {
            if container["image"] == image["name"] {
                let (name, tag) = (image["newName"].as_str(), image["newTag"].as_str());
                container["image"] = format!("{}:{}", name.expect("a name"), tag.expect("a tag")).into();
            }
        }
    }
    for patch in field("patches").as_array().into_iter().flatten() {
        let target = &patch["target"];
        let object =
            objects.iter_mut().find(|o| o["kind"] == target["kind"] && o["metadata"]["name"] == target["name"]);
        let object = object.unwrap_or_else(|| panic!("`{}`: nothing is {target}", path.display()));
        let operations: Vec<Value> =
            serde_saphyr::from_str(patch["patch"].as_str().expect("a patch is text")).expect("YAML");
        operations.iter().for_each(|operation| change(object, operation));
    }
}

/// One operation of RFC 6902.
fn change(object: &mut Value, operation: &Value) {
    let path = operation["path"].as_str().expect("an operation has a path");
    let (parent, last) = path.rsplit_once('/').expect("a path has a slash");
    let value = operation["value"].clone();
    let there = object.pointer(path).is_some();
    let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("no parent of {path}"));
    match (operation["op"].as_str(), parent) {
        (Some("add"), Value::Array(list)) if last == "-" => list.push(value),
        (Some("add"), Value::Object(map)) => drop(map.insert(last.to_owned(), value)),
        (Some("replace"), Value::Object(map)) if there => drop(map.insert(last.to_owned(), value)),
        (op, _) => panic!("{op:?} of {path} is not rendered here"),
    }
}
