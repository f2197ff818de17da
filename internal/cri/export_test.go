package cri

// ToStatus gives an error its gRPC code.
var ToStatus = toStatus
