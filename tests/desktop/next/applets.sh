# The applet of desktop/README.md in QML.

. /ipc/next/common.sh
log=/pictures/links.log

service
QT_QPA_PLATFORM=offscreen QT_FORCE_STDERR_LOGGING=1 qml6 /ipc/desktop/applets/links.qml -- session >"$log" 2>&1 &
until_line "$log" 'lo unknown'
ip link add left type veth peer name right
until_line "$log" 'left down'
ip link set left up
ip link set right up
until_line "$log" 'left up'
echo "PASSED"
