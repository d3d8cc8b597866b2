//! The closed lists of what the injector decides: labels of its metrics, reasons of its events.

use serde::{Deserialize, Serialize};

terms! {
    /// Why a pod is left as it is.
    SkipReason ("reason to skip") {
        /// Neither the namespace nor the pod asks for the mesh.
        NotSelected = "not-selected",
        /// The pod says `hauberk.dev/inject: disabled`.
        PodDisabled = "pod-disabled",
        /// The namespace says `hauberk.dev/inject: disabled`.
        NamespaceDisabled = "namespace-disabled",
        /// `kube-system` and the mesh's own namespace.
        SystemNamespace = "system-namespace",
        /// The pod has the node's network: redirection would take the node's traffic.
        HostNetwork = "host-network",
        /// The pod runs on Windows.
        Windows = "windows",
        /// A static pod's image in the API: kubelet runs what its file says, whatever stands here.
        MirrorPod = "mirror-pod",
        /// Another mesh's proxy is in the pod.
        OtherMesh = "other-mesh",
    }
}

terms! {
    /// Why a pod is refused.
    RefusalReason ("reason to refuse") {
        /// The pod is not of the form that is known.
        Unreadable = "unreadable",
        /// No container but ours.
        NoContainers = "no-containers",
        /// A label or annotation has a value that is not valid.
        InvalidSetting = "invalid-setting",
        /// There is no label or annotation of this name.
        UnknownSetting = "unknown-setting",
        /// It exists, but does not belong where it stands.
        MisplacedSetting = "misplaced-setting",
        /// The pod asks for less than its `required` namespace says.
        LoosensRequired = "loosens-required",
        /// The pod would be in a `required` namespace without a proxy.
        UninjectedInRequired = "uninjected-in-required",
        /// The namespace's Pod Security level forbids NET_ADMIN.
        PodSecurity = "pod-security",
        /// The ServiceAccount's name gives no valid identity.
        Identity = "identity",
        /// An application's container runs as the proxy's uid: its traffic would pass beside the proxy.
        ProxyUid = "proxy-uid",
        /// The application uses a port of the proxy's, or a port's name.
        Port = "port",
        /// The application mounts a volume of the proxy's.
        Volume = "volume",
        /// A debug container has a name of ours.
        ContainerName = "container-name",
        /// A probe or hook cannot be led through the proxy.
        Probe = "probe",
        /// The kind of sidecar does not work here.
        Sidecar = "sidecar",
        /// A request is above its limit.
        Resources = "resources",
        /// The mesh's own settings are not valid.
        MeshConfig = "mesh-config",
    }
}
