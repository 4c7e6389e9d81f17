#!/usr/bin/env bash
# Says what would fail before `docker compose up`: engine, Compose, ports, disk, volumes, .env, and the GPU's driver and toolkit.
#
#   docker/check.sh          for compose.yaml, on a machine with NVIDIA GPUs
#   docker/check.sh --cpu    for compose.yaml with compose.cpu.yaml
#
# It changes nothing. The exit status is 1 if something would fail. `framefit doctor` in the running container says the rest.
set -u
folder=$(cd "$(dirname "$0")" && pwd)
cpu=false
[ "${1:-}" = --cpu ] && cpu=true
failed=0

ok() { printf 'ok     %-10s %s\n' "$1" "$2"; }
note() { printf 'note   %-10s %s\n' "$1" "$2"; printf '%18s%s\n' '' "$3"; }
wrong() { printf 'wrong  %-10s %s\n' "$1" "$2"; printf '%18s%s\n' '' "$3"; failed=1; }

# The value of a variable: the environment's, else that of .env, else the default.
value() {
    local found=${!1-}
    if [ -z "$found" ] && [ -f "$folder/.env" ]; then
        found=$(sed -n "s/^$1=//p" "$folder/.env" | tail -n 1 | sed "s/^[\"']//; s/[\"']$//")
    fi
    printf '%s' "${found:-$2}"
}

# Whether version $1 is at least $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

check_engine() {
    if ! command -v docker >/dev/null; then
        wrong engine "there is no command docker" "Install Docker; on Debian: apt install docker.io docker-compose docker-buildx"
        return 1
    fi
    local version
    if ! version=$(docker info --format '{{.ServerVersion}}' 2>/dev/null) || [ -z "$version" ]; then
        wrong engine "no engine answers docker info" "Start it (systemctl start docker), or join the group docker."
        return 1
    fi
    ok engine "Docker $version"
}

check_compose() {
    local version
    version=$(docker compose version --short 2>/dev/null | sed 's/^v//')
    if [ -z "$version" ]; then
        wrong compose "docker compose does not run" "Install Compose v2 as a plugin; on Debian 13: apt install docker-compose"
    elif ! at_least "$version" 2.24.4; then
        wrong compose "Compose $version does not know !reset of compose.cpu.yaml" "Install 2.24.4 or newer."
    else
        ok compose "Compose $version"
    fi
    if ! docker buildx version >/dev/null 2>&1; then
        wrong buildx "docker buildx does not run: Compose cannot build the image" "Install it; on Debian 13: apt install docker-buildx"
    fi
}

check_ports() {
    local name default port
    while read -r name default; do
        port=$(value "$name" "$default")
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            ok port "$port ($name) is free"
        elif docker ps --format '{{.Names}} {{.Ports}}' 2>/dev/null | grep -q "^framefit-.*:$port->"; then
            ok port "$port ($name) is this project's"
        else
            wrong port "$port is in use" "End that program, or set $name in docker/.env."
        fi
    done <<<"PORT 8000
PROMETHEUS_PORT 9090
GRAFANA_PORT 3000"
}

check_disk() {
    local root free need=20
    $cpu && need=6
    root=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null)
    [ -d "$root" ] || root=/
    free=$(df -Pk "$root" | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free" -lt "$need" ]; then
        wrong disk "$root has $free GiB free" "Building takes up to $need GiB, and models and videos come on top: free some."
    else
        ok disk "$root has $free GiB free"
    fi
}

check_volume() {
    local path owner group mode
    path=$(value "$1" "")
    case $path in
        /* | ./* | ../*) ;;
        *) return ;; # a named volume gets its owner from the image
    esac
    case $path in ./* | ../*) path=$folder/$path ;; esac
    if [ ! -d "$path" ]; then
        wrong volume "$path ($1) does not exist: Docker would make it for root" "As root, run mkdir -p $path && chown -R 10001:0 $path"
        return
    fi
    read -r owner group mode <<<"$(stat -c '%u %g %a' "$path")"
    if [ "$owner" = 10001 ] || { [ "$group" = 0 ] && [ $((8#$mode & 8#070)) -eq $((8#070)) ]; }; then
        ok volume "$path ($1) belongs to user $owner, group $group"
    else
        wrong volume "$path ($1) belongs to user $owner: the container's user 10001 cannot write to it" \
            "As root, run chown -R 10001:0 $path"
    fi
}

check_env() {
    local name unknown=""
    if [ ! -f "$folder/.env" ]; then
        ok .env "none: every value has a default"
        return
    fi
    for name in $(sed -n 's/^\(FRAMEFIT_[A-Z0-9_]*\)=.*/\1/p' "$folder/.env"); do
        grep -q "^      $name:" "$folder/compose.yaml" || unknown="$unknown $name"
    done
    if [ "$(value FRAMEFIT_OPEN_MONITORING true)" = false ] && ! grep -q '^ *authorization:' "$folder/prometheus/prometheus.yml"; then
        note .env "FRAMEFIT_OPEN_MONITORING=false, but prometheus.yml has no key: there will be no metrics" \
            "Give the job framefit an authorization (docs/docker.md)."
    fi
    if [ -n "$unknown" ]; then
        wrong .env "compose.yaml does not pass on:$unknown" "docs/settings.md has the names of all settings."
    else
        ok .env "every setting in it is passed on"
    fi
}

check_gpu() {
    local driver cuda need index
    if ! driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || [ -z "$driver" ]; then
        wrong gpu "nvidia-smi shows no GPU" "Install NVIDIA's driver, or use docker/check.sh --cpu and compose.cpu.yaml."
        return
    fi
    index=$(value TORCH_INDEX_URL "")
    cuda=$(printf '%s' "$index" | sed -n 's/.*\/cu\([0-9][0-9]\)[0-9]*.*/\1/p')
    case $index in
        */cpu*)
            wrong gpu "TORCH_INDEX_URL has a CPU build of torch: the GPU would not be used" "Empty it in docker/.env."
            return ;;
    esac
    case ${cuda:-13} in
        11) need=450 ;;
        12) need=525 ;;
        *) need=580 ;;
    esac
    if at_least "$driver" "$need"; then
        ok gpu "driver $driver suits torch for CUDA ${cuda:-13}"
    else
        wrong gpu "driver $driver is too old for torch for CUDA ${cuda:-13}, which needs $need" \
            "Update the driver, or set TORCH_INDEX_URL in docker/.env to a build for an older CUDA (docs/docker.md)."
    fi
    if docker info --format '{{json .Runtimes}} {{json .CDISpecDirs}}' 2>/dev/null | grep -q '"nvidia"'; then
        ok toolkit "the engine has the runtime nvidia"
    elif command -v nvidia-ctk >/dev/null; then
        wrong toolkit "NVIDIA's container toolkit is not set up" \
            "As root, run nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"
    else
        wrong toolkit "NVIDIA's container toolkit is not installed" "Install nvidia-container-toolkit, then run nvidia-ctk runtime configure."
    fi
}

if check_engine; then
    check_compose
    check_disk
    $cpu || check_gpu
fi
check_ports
check_volume DATA_VOLUME
check_volume MODELS_VOLUME
check_env
exit $failed
