//! Every kind of volume.

use serde_json::{Value, json};

use super::Choices;

/// A few volumes, `data-0` and so on. Now and then one has a name of the proxy's.
pub(super) fn some(choices: &mut Choices<'_>) -> Vec<Value> {
    let kinds = kinds();
    let many = choices.pick(4);
    let mut volumes = Vec::new();
    for i in 0..many {
        let mut volume = choices.of(&kinds);
        let name = if choices.chance(2) { "hauberk-identity".to_owned() } else { format!("data-{i}") };
        volume["name"] = json!(name);
        let taken = volumes.iter().any(|other: &Value| other["name"] == volume["name"]);
        if !taken {
            volumes.push(volume);
        }
    }
    volumes
}

fn kinds() -> Vec<Value> {
    let token = json!({"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 7200}});
    let downward =
        json!({"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}});
    let bundle = json!({"clusterTrustBundle": {"name": "roots", "path": "roots.pem"}});
    let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    vec![
        json!({"emptyDir": {}}),
        json!({"emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}),
        json!({"hostPath": {"path": "/var/log", "type": "Directory"}}),
        json!({"configMap": {"name": "settings", "defaultMode": 420, "items": [{"key": "a", "path": "a", "mode": 256}]}}),
        json!({"configMap": {"name": "settings", "optional": true}}),
        json!({"secret": {"secretName": "keys", "defaultMode": 256, "optional": false}}),
        json!({"projected": {"defaultMode": 256, "sources": [token]}}),
        json!({"projected": {"sources": [token, downward, {"configMap": {"name": "a"}}, {"secret": {"name": "b"}}]}}),
        json!({"projected": {"sources": [bundle]}}),
        json!({"projected": {"sources": null}}),
        json!({"downwardAPI": {"items": [{"path": "cpu", "resourceFieldRef": {"containerName": "app-0", "resource": "limits.cpu"}}]}}),
        json!({"persistentVolumeClaim": {"claimName": "db", "readOnly": true}}),
        json!({"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}),
        json!({"csi": {"driver": "csi.example.dev", "volumeAttributes": {"share": "a"}, "nodePublishSecretRef": {"name": "a"}}}),
        json!({"nfs": {"server": "nfs.example", "path": "/"}}),
        json!({"iscsi": {"targetPortal": "192.0.2.1:3260", "iqn": "iqn.2001-04.com.example:storage", "lun": 0}}),
        json!({"fc": {"targetWWNs": ["50060e801049cfd1"], "lun": 0}}),
        json!({"rbd": {"monitors": ["192.0.2.1:6789"], "image": "a"}}),
        json!({"cephfs": {"monitors": ["192.0.2.1:6789"]}}),
        json!({"glusterfs": {"endpoints": "a", "path": "b"}}),
        json!({"cinder": {"volumeID": "a"}}),
        json!({"azureFile": {"secretName": "a", "shareName": "b"}}),
        json!({"azureDisk": {"diskName": "a", "diskURI": "https://disk.example/a"}}),
        json!({"gcePersistentDisk": {"pdName": "a"}}),
        json!({"awsElasticBlockStore": {"volumeID": "a"}}),
        json!({"flexVolume": {"driver": "example.dev/flex", "options": {"a": "b"}}}),
        json!({"portworxVolume": {"volumeID": "a"}}),
        json!({"quobyte": {"registry": "192.0.2.1:7861", "volume": "a"}}),
        json!({"scaleIO": {"gateway": "https://gateway.example", "system": "a", "secretRef": {"name": "a"}, "volumeName": "b"}}),
        json!({"storageos": {"volumeName": "a"}}),
        json!({"vsphereVolume": {"volumePath": "[a] b"}}),
        json!({"photonPersistentDisk": {"pdID": "a"}}),
        json!({"flocker": {"datasetName": "a"}}),
        json!({"gitRepo": {"repository": "https://git.example/a"}}),
        json!({"image": {"reference": "data:1", "pullPolicy": "IfNotPresent"}}),
    ]
}
