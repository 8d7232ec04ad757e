# shellcheck shell=sh
# Run inside the root when it is built.
# RHEL 9's package → the programs that it brings (AppStream; rclone from EPEL), as far as documentation tells: no such host was at hand.
mkdir -p /srv/rpms /root/rpm
while read -r name programs; do
    {
        printf 'Name: %s\nVersion: 1\nRelease: 1\nSummary: stands for %s\nLicense: None\nBuildArch: noarch\nAutoReqProv: no\n' "$name" "$name"
        printf '%%description\nStands for %s.\n%%install\nmkdir -p %%{buildroot}/usr/bin\n' "$name"
        for program in $programs; do
            printf "printf '#!/bin/sh\\\\n' > %%{buildroot}/usr/bin/%s; chmod 755 %%{buildroot}/usr/bin/%s\n" "$program" "$program"
        done
        printf '%%files\n'
        for program in $programs; do printf '/usr/bin/%s\n' "$program"; done
    } > "/root/rpm/$name.spec"
    rpmbuild -bb --quiet --define '_topdir /root/rpm/build' --define '_rpmdir /srv/rpms' "/root/rpm/$name.spec"
done <<'LIST'
postgresql pg_dump pg_restore psql
redis redis-cli redis-server
rclone rclone
rsync rsync
rsync-rrsync rrsync
curl curl
cronie crontab
LIST
createrepo_c --quiet /srv/rpms
rm -rf /root/rpm
mkdir -p /etc/yum.repos.d
printf '[local]\nname=local\nbaseurl=file:///srv/rpms\ngpgcheck=0\n' > /etc/yum.repos.d/local.repo
rpm --initdb
rm -f /etc/os-release /etc/debian_version /usr/bin/apt-get /usr/bin/apt /usr/bin/dpkg-query
printf 'NAME="Rocky Linux"\nVERSION="9.4"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n' > /etc/os-release
echo 'Rocky Linux release 9.4' > /etc/redhat-release
mkdir -p /opt/qdrant/lib /opt/qdrant/tests /opt/wheelhouse /opt/agentmem/config
touch /opt/qdrant/qdrant
