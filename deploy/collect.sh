# Collects programs of this Debian, with the libraries that they load, into the directory $out. Sourced by scripts that
# make images.

# Debian's own layout, where /bin is /usr/bin; a user for our processes.
layout() {
    local dir
    mkdir -p "$out"/usr/{bin,sbin,lib} "$out"/{etc,run,tmp,var}
    for dir in bin sbin lib; do ln -s "usr/$dir" "$out/$dir"; done
    # The loader's directory has another name on each architecture.
    for dir in /lib64 /lib32; do
        if [[ -L $dir ]]; then
            mkdir -p "$out/usr$dir"
            ln -s "usr$dir" "$out$dir"
        fi
    done
    chmod 1777 "$out/tmp"
    echo 'hosts: files dns' >"$out/etc/nsswitch.conf"
    printf 'root:x:0:0::/:/sbin/nologin\nhauberk:x:2102:2102::/:/sbin/nologin\n' >"$out/etc/passwd"
    printf 'root:x:0:\nhauberk:x:2102:\n' >"$out/etc/group"
}

# Where this machine's libraries are.
libraries() {
    local libc
    libc=$(ldd /bin/sh | grep -oE '/[^ ]*/libc\.so\.6')
    echo "/usr${libc%/libc.so.6}"
}

# put FILE [AT]: one file, with the libraries that it needs, under the names that it needs them by.
put() {
    local file at library
    file=$(readlink -f "$1")
    at=$out/usr${2:-$1}
    at=${at/#$out\/usr\/usr/$out/usr}
    if [[ -e $at ]]; then return; fi
    install -D -m "$([[ -x $file ]] && echo 755 || echo 644)" "$file" "$at"
    # What is no program has no libraries.
    for library in $(ldd "$file" 2>/dev/null | grep -oE '/[^ ]+' || true); do
        at=$out/usr${library#/usr}
        [[ -e $at ]] || install -D -m 755 "$(readlink -f "$library")" "$at"
    done
}
