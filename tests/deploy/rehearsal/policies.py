"""policies.py - NetworkPolicy objects as packet filters of the pods that they select.

Only what the manifests use is understood: pod and namespace selectors with matchLabels, and
numeric ports.  Anything else is an error, so that no rule is silently wider than in a cluster.
"""
from hosts import NODE


def matches(selector, labels):
    if set(selector) - {"matchLabels"}:
        raise ValueError(f"selector {selector}: only matchLabels is understood")
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())


def _is_peer(peer, pod, policy_namespace):
    if set(peer) - {"podSelector", "namespaceSelector"}:
        raise ValueError(f"peer {peer}: only podSelector and namespaceSelector are understood")
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": pod.namespace}
        if not matches(peer["namespaceSelector"], labels):
            return False
    elif pod.namespace != policy_namespace:
        return False
    return matches(peer.get("podSelector", {}), pod.labels)


def _accepts(rules, direction, pods, namespace):
    """Lines that let through what one list of ingress or egress rules allows."""
    word, side = {"ingress": ("from", "saddr"), "egress": ("to", "daddr")}[direction]
    lines = []
    for rule in rules:
        addresses = sorted({p.address for p in pods for peer in rule.get(word, [])
                            if _is_peer(peer, p, namespace)})
        if word in rule and not addresses:
            continue
        source = f"ip {side} {{{', '.join(addresses)}}} " if word in rule else ""
        ports = rule.get("ports", [])
        for port in ports:
            lines.append(
                f"{source}{port.get('protocol', 'TCP').lower()} dport {port['port']} accept")
        if not ports:
            lines.append(f"{source}accept")
    return lines


def _chain(hook, lines, drop):
    """The loopback, answers, and the node (probes) are always let through."""
    verdict = "drop" if drop else "accept"
    device, side = {"input": ("iif", "saddr"), "output": ("oif", "daddr")}[hook]
    return "\n".join([f"chain {hook}_rules {{",
                      f"type filter hook {hook} priority 0; policy {verdict};",
                      "ct state established,related accept", f"{device} lo accept",
                      f"ip {side} {NODE} accept", *lines, "}"])


def rules_for(pod, pods, policies):
    """The filter of one pod, given all pods and all policies."""
    chains = []
    for direction, hook in (("ingress", "input"), ("egress", "output")):
        selected = [p for p in policies
                    if p["metadata"].get("namespace") == pod.namespace
                    and direction.capitalize() in p["spec"]["policyTypes"]
                    and matches(p["spec"]["podSelector"], pod.labels)]
        lines = [line for p in selected
                 for line in _accepts(p["spec"].get(direction, []), direction, pods, pod.namespace)]
        chains.append(_chain(hook, lines, bool(selected)))
    return "table inet pods {\n" + "\n".join(chains) + "\n}\n"
