"""etcd, kube-apiserver, kube-controller-manager and Prometheus on loopback, and what is installed in them."""
